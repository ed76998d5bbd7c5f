// Chat with the model, and a live view of the server. No library, no storage, no other host.
"use strict";

const $ = (id) => document.getElementById(id);
const sliders = ["temperature", "top_p", "top_k", "max_tokens"];
let messages = [];
let running = null; // the AbortController of the answer that streams

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: "Bearer " + key } : {};
}

function show(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  $("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function working(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}

// Calls `each` with the JSON of every event of a stream.
async function readEvents(response, each) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server closed the connection");
    rest += value;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const data = rest.slice("data: ".length, end);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      each(event);
    }
  }
}

async function ask(question) {
  complain("");
  messages.push({ role: "user", content: question });
  const asked = show("user", question);
  const item = show("assistant open", "");
  const body = { messages, stream: true };
  for (const name of sliders) body[name] = Number($(name).value);
  if ($("max_tokens").value === $("max_tokens").max) delete body.max_tokens; // what there is room for
  running = new AbortController();
  working(true);
  let text = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    await readEvents(response, (event) => {
      text += event.choices[0]?.delta.content ?? "";
      const list = $("messages");
      const below = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
      item.textContent = text;
      if (below) list.scrollTop = list.scrollHeight;
    });
  } catch (e) {
    if (e.name !== "AbortError") complain("No answer: " + e.message);
  }
  item.className = "assistant";
  if (text) {
    messages.push({ role: "assistant", content: text });
  } else {
    // Nothing came: the question goes back to where it can be sent again.
    messages.pop();
    asked.remove();
    item.remove();
    if (!$("question").value) $("question").value = question;
  }
  running = null;
  working(false);
  $("question").focus();
}

function send() {
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  ask(question);
}

$("ask").addEventListener("submit", (e) => {
  e.preventDefault();
  send();
});
$("question").addEventListener("keydown", (e) => {
  if (e.key !== "Enter" || e.shiftKey || e.isComposing) return;
  e.preventDefault();
  send();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape") running?.abort();
});
$("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("messages").replaceChildren();
  complain("");
  $("question").focus();
});
for (const name of sliders) {
  const shown = document.querySelector(`output[for="${name}"]`);
  const update = () => (shown.textContent = $(name).value);
  $(name).addEventListener("input", update);
  update();
}

// The live view: /metrics, once a second while the page is visible.

let before = null;
const rates = [];

function parseMetrics(text) {
  const all = {};
  for (const line of text.split("\n")) {
    const at = line.lastIndexOf(" ");
    if (line && line[0] !== "#") all[line.slice(0, at)] = Number(line.slice(at + 1));
  }
  return all;
}

async function look() {
  if (document.hidden) return;
  try {
    const response = await fetch("metrics", { headers: headers() });
    if (!response.ok) throw new Error(response.status === 401 ? "needs the API key" : response.status);
    const m = parseMetrics(await response.text());
    const now = performance.now() / 1000;
    if (before) rates.push((m.ostro_output_tokens_total - before.tokens) / (now - before.at));
    if (rates.length > 120) rates.shift();
    before = { tokens: m.ostro_output_tokens_total, at: now };
    const used = m.ostro_kv_blocks ? m.ostro_kv_blocks_used / m.ostro_kv_blocks : 0;
    $("rate").textContent = rates.length ? rates[rates.length - 1].toFixed(1) : "–";
    $("queue").textContent = `${m.ostro_requests_running}, ${m.ostro_requests_waiting}`;
    $("kv").value = used;
    $("kv-text").textContent = (100 * used).toFixed(1) + " %";
    $("reuse").textContent = (100 * m.ostro_kv_hit_rate).toFixed(1) + " %";
    const most = Math.max(1, ...rates);
    $("history").firstElementChild.setAttribute(
      "points", rates.map((r, i) => `${(i * 240) / 119},${46 - (44 * r) / most}`).join(" "));
  } catch (e) {
    before = null;
    $("rate").textContent = "no view: " + e.message;
  }
  if (!$("model").textContent) showModel();
}

async function showModel() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) return;
    const model = (await response.json()).data[0];
    $("model").textContent = model.id;
    $("max_tokens").max = model.max_model_len;
    $("max_tokens").dispatchEvent(new Event("input"));
  } catch (e) {
    // look() shows that the server is not there.
  }
}

look();
setInterval(look, 1000);
