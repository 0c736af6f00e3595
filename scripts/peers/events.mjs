// A browser's EventSource: it follows a run, comes back by itself, and prints the numbers and the text.
import { EventSource } from "eventsource";

const [base, token, run] = process.argv.slice(2);
const fetchWithToken = (url, init) => fetch(url, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } });
const source = new EventSource(`${base}/api/runs/${run}/events`, { fetch: fetchWithToken });
const seen = [];
let text = "", opened = 0;
source.addEventListener("open", () => { opened += 1; });
const take = event => {
  const told = JSON.parse(event.data);
  seen.push(Number(event.lastEventId));
  if (told.type === "text.delta") { text += told.data.text; console.error(`text ${opened}`); }
  if (told.type === "text.reset") text = "";
};
for (const type of ["run.started", "turn.started", "text.delta", "text.reset", "tool.started", "tool.finished", "request.opened", "request.closed", "run.waiting", "run.recovered"])
  source.addEventListener(type, take);
source.addEventListener("run.finished", event => {
  take(event);
  source.close();
  console.log(JSON.stringify({ seen, text, opened }));
});
