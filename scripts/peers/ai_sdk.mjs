// Vercel's AI SDK: `talk` sends a message and prints its text as it comes; `resume` reads on what is in progress;
// `pay` sends a message, approves what it asks, and prints the messages.
import { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses, readUIMessageStream } from "ai";

const [base, token, act, chat] = process.argv.slice(2);
const transport = new DefaultChatTransport({ api: `${base}/api/chat/Clerk`, headers: { Authorization: `Bearer ${token}` } });
const said = text => ({ id: `${chat}-${text}`, role: "user", parts: [{ type: "text", text }] });
const textOf = message => message.parts.filter(part => part.type === "text").map(part => part.text).join("");

class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = message => { this.messages = [...this.messages, message]; };
  popMessage = () => { this.messages = this.messages.slice(0, -1); };
  replaceMessage = (index, message) => { this.messages = this.messages.with(index, structuredClone(message)); };
  snapshot = value => structuredClone(value);
}
class Chat extends AbstractChat {}

if (act === "talk") {
  const stream = await transport.sendMessages({ chatId: chat, messages: [said("talk")], trigger: "submit-message" });
  for await (const message of readUIMessageStream({ stream })) console.log(JSON.stringify(textOf(message)));
} else if (act === "resume") {
  const stream = await transport.reconnectToStream({ chatId: chat });
  let last = null;
  if (stream !== null) for await (const message of readUIMessageStream({ stream })) last = message;
  console.log(JSON.stringify(last && textOf(last)));
} else {
  const state = new State();
  const one = new Chat({ id: chat, transport, state, sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses });
  await one.sendMessage({ text: "pay", messageId: undefined });
  const asked = state.messages.at(-1).parts.find(part => part.state === "approval-requested");
  await one.addToolApprovalResponse({ id: asked.approval.id, approved: true });
  while (one.status !== "ready" || !textOf(state.messages.at(-1))) {
    if (one.error) throw one.error;
    await new Promise(resolve => setTimeout(resolve, 20));
  }
  const call = state.messages.at(-1).parts.find(part => part.type === "dynamic-tool");
  console.log(JSON.stringify({ messages: state.messages.length, text: textOf(state.messages.at(-1)), state: call.state, output: call.output }));
}
