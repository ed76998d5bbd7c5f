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

// A hidden button would lose the focus, so what comes next gets it; where there is no mouse, not
// the text field, for it would bring up the keyboard. Elsewhere the focus is the user's.
function working(on) {
  const had = document.activeElement;
  $("send").hidden = on;
  $("stop").hidden = !on;
  if (had === $("send")) $("stop").focus();
  if (had === $("stop")) $(matchMedia("(pointer: coarse)").matches ? "send" : "question").focus();
}

// Browsers have words of their own for a network that fails, each another.
const reason = (e) => (e instanceof TypeError ? "the server cannot be reached" : e.message);

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
  const conversation = messages; // "New chat" begins another
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
    if (e.name !== "AbortError") complain((text ? "The answer broke off: " : "No answer: ") + reason(e));
  }
  item.className = "assistant";
  if (text) {
    conversation.push({ role: "assistant", content: text });
  } else if (conversation === messages) {
    // Nothing came: the question goes back to where it can be sent again.
    messages.pop();
    asked.remove();
    item.remove();
    if (!$("question").value) $("question").value = question;
  }
  running = null;
  working(false);
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
const loads = []; // of the last minute: the tokens of each expert since the server started

function parseMetrics(text) {
  const all = {};
  for (const line of text.split("\n")) {
    const at = line.lastIndexOf(" ");
    if (line && line[0] !== "#") all[line.slice(0, at)] = Number(line.slice(at + 1));
  }
  return all;
}

// [layer][expert]
function expertTokens(metrics) {
  const layers = [];
  for (const [name, value] of Object.entries(metrics)) {
    const at = name.match(/^ostro_expert_tokens_total\{layer="(\d+)",expert="(\d+)"\}$/);
    if (at) (layers[at[1]] ??= [])[at[2]] = value;
  }
  return layers;
}

// A bar for each expert, over all layers, and a line where an even load would end.
function showExperts(metrics) {
  loads.push(expertTokens(metrics));
  if (loads.length > 61) loads.shift();
  const late = loads[loads.length - 1].map((layer, l) => layer.map((n, e) => n - (loads[0][l]?.[e] ?? 0)));
  if (!late.length) return;
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const count = late[0].length;
  const totals = late[0].map((_, e) => sum(late.map((layer) => layer[e])));
  const all = sum(totals);
  // Of the layer where the load is least even: its steps wait for that expert.
  const excess = late.map((layer) => (Math.max(...layer) * count) / sum(layer));
  $("balance").hidden = false;
  $("busiest").textContent = all ? Math.max(...excess).toFixed(2) + " × its share" : "–";
  const chart = $("experts");
  while (chart.childElementCount <= count) {
    const bar = chart.appendChild(document.createElementNS(chart.namespaceURI, "rect"));
    bar.append(document.createElementNS(chart.namespaceURI, "title"));
  }
  const scale = 44 / Math.max(1, ...totals);
  chart.querySelectorAll("rect").forEach((bar, e) => {
    bar.setAttribute("x", ((e + 0.1) * 240) / count);
    bar.setAttribute("width", (0.8 * 240) / count);
    bar.setAttribute("y", 48 - totals[e] * scale);
    bar.setAttribute("height", totals[e] * scale);
    bar.firstChild.textContent = `Expert ${e}: ${all ? ((100 * totals[e]) / all).toFixed(1) : 0} %`;
  });
  for (const end of ["y1", "y2"])
    chart.querySelector("line").setAttribute(end, 48 - (all / count) * scale);
}

async function look() {
  if (document.hidden) return;
  try {
    const response = await fetch("metrics", { headers: headers() });
    if (!response.ok) throw new Error(response.status === 401 ? "needs the API key" : response.status);
    const m = parseMetrics(await response.text());
    const now = performance.now() / 1000;
    if (before && m.ostro_output_tokens_total < before.tokens) forget(); // another server
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
    showExperts(m);
  } catch (e) {
    forget();
    $("rate").textContent = "no view: " + reason(e);
    for (const name of ["queue", "kv-text", "reuse", "busiest"]) $(name).textContent = "–";
  }
  if (!$("model").textContent) showModel();
}

function forget() {
  before = null;
  loads.length = 0;
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

async function watch() {
  await look();
  setTimeout(watch, 1000);
}
watch();
