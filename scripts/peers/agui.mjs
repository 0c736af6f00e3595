// AG-UI's HttpAgent: it asks, answers the interrupt, and prints its messages.
import { HttpAgent } from "@ag-ui/client";

const [base, token, thread] = process.argv.slice(2);
const agent = new HttpAgent({ url: `${base}/agui/Clerk`, threadId: thread, headers: { Authorization: `Bearer ${token}` } });
agent.addMessage({ id: "m1", role: "user", content: "pay" });
await agent.runAgent();
const interrupts = agent.pendingInterrupts;
await agent.runAgent({ resume: interrupts.map(one => ({ interruptId: one.id, status: "resolved", payload: { approve: true } })) });
console.log(JSON.stringify({ interrupts: interrupts.length, left: agent.pendingInterrupts.length, messages: agent.messages }));
