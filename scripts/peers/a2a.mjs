// A2A's client in JavaScript: it asks, approves, and prints the tasks.
import { ClientFactory, ClientFactoryOptions, JsonRpcTransportFactory } from "@a2a-js/sdk/client";

const [base, token, id] = process.argv.slice(2);
const withToken = (url, init = {}) => {
  const headers = new Headers(init.headers);
  headers.set("Authorization", `Bearer ${token}`);
  return fetch(url, { ...init, headers });
};
const { AgentCardResolver, DefaultAgentCardResolver } = await import("@a2a-js/sdk/client");
const Resolver = DefaultAgentCardResolver ?? AgentCardResolver;
const factory = new ClientFactory({
  ...ClientFactoryOptions.default,
  transports: [new JsonRpcTransportFactory({ fetchImpl: withToken })],
  cardResolver: new Resolver({ fetchImpl: withToken }),
});
const client = await factory.createFromUrl(`${base}/a2a/Clerk/`);
const message = (messageId, text, more) => ({ message: { messageId, role: 1, parts: [{ content: { $case: "text", value: text } }], ...more } });
const tasks = [];
const first = await client.sendMessage(message(id, "pay"));
tasks.push(first);
const task = first.task ?? first;
for await (const update of client.sendMessageStream(message(`${id}-2`, "approve", { taskId: task.id }))) tasks.push(update);
tasks.push(await client.getTask({ id: task.id }));
console.log(JSON.stringify(tasks));
