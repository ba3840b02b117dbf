// The page of the service: one picture, its words, and what made each word. Every text is set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const MOST_BYTES = 20 * 2 ** 20; // as the service's own limit: a larger body would only be refused after the upload
const DIM = 0.8;

let picture = null; // the file on show
let answer = null; // the service's answer for it
let chosen = -1; // the word that was clicked: it stays lit
let asked = 0; // number of the latest request: older answers are dropped

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), text === undefined ? {} : { textContent: text }, properties);
}

const percent = (share) => (share >= 0.0995 || share === 0 ? Math.round(100 * share) : (100 * share).toFixed(1)) + " %";

function complain(what, todo = "") {
  $("error-what").textContent = what;
  $("error-do").textContent = todo ? "What to do: " + todo + "." : "";
  $("error").hidden = false;
  $("status").textContent = "";
}

async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(options.headers || {}), ...(token ? { Authorization: "Bearer " + token } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw { message: "The service does not answer.", do: "see whether it is still running" };
  }
  const found = await response.json().catch(() => null);
  if (response.status === 401) $("token-form").hidden = false;
  if (!response.ok || !found) throw (found && found.error) || { message: "The service answered " + response.status + ".", do: "see its log" };
  return found;
}

async function guarded(work) {
  $("error").hidden = true;
  try {
    await work();
  } catch (error) {
    complain(error.message || String(error), error.do);
  }
}

async function begin() {
  const facts = await call("/models");
  $("token-form").hidden = true;
  $("model").replaceChildren(...facts.models.map((model) => element("option", model.name, { value: model.name, title: model.description })));
  $("model-row").hidden = facts.models.length < 2;
  for (const ability of ["ask", "label", "search"]) $(ability + "-section").hidden = !facts.can[ability];
}

function take(file) {
  if (!file) return;
  guarded(async () => {
    if (file.size > MOST_BYTES) throw { message: "The picture has " + Math.round(file.size / 2 ** 20) + " MB.", do: "choose one of at most 20 MB" };
    picture = file;
    await captioned();
  });
}

async function captioned() {
  const mine = ++asked;
  answer = null;
  $("result").hidden = true;
  $("status").textContent = "Looking at the picture …";
  const options = new URLSearchParams({ trace: "true", n_best: "3", beams: "3" });
  if ($("model").value) options.set("model", $("model").value);
  const found = await call("/caption?" + options, { method: "POST", body: picture, headers: { "Content-Type": "application/octet-stream" } });
  if (mine !== asked) return;
  answer = found;
  show();
}

function show() {
  chosen = -1;
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(picture);
  $("picture").alt = answer.caption;
  $("picture").onerror = () => ($("status").textContent = "The browser cannot show this kind of picture; the service could read it.");
  const words = answer.tokens.map((token, t) => {
    const word = element("button", token, { type: "button", onclick: () => choose(t), onmouseenter: () => light(t), onmouseleave: () => light(chosen) });
    word.onfocus = () => light(t);
    word.onblur = () => light(chosen);
    word.onkeydown = (event) => step(event, t);
    word.setAttribute("aria-pressed", "false");
    return word;
  });
  $("caption").replaceChildren(...words);
  if (!words.length) $("caption").textContent = "(an empty caption)";
  $("result").hidden = false;
  $("status").textContent = "Caption: " + answer.caption;
  showHypotheses();
  light(-1);
}

function showHypotheses() {
  $("hypotheses").hidden = answer.hypotheses.length < 2;
  const table = element("table");
  const head = table.appendChild(element("tr"));
  head.append(element("th", "caption"), element("th", "share among these"));
  for (const one of answer.hypotheses) {
    const row = table.appendChild(element("tr"));
    row.append(element("td", one.caption), element("td", percent(one.share), { className: "number" }));
  }
  $("hypotheses-table").replaceChildren(table);
}

function choose(t) {
  chosen = chosen === t ? -1 : t;
  light(chosen);
}

function step(event, t) {
  const to = { ArrowRight: t + 1, ArrowLeft: t - 1, Home: 0, End: answer.tokens.length - 1 }[event.key];
  if (event.key === "Escape") {
    chosen = -1;
    light(-1);
  } else if (to !== undefined && $("caption").children[to]) {
    event.preventDefault();
    $("caption").children[to].focus();
  }
}

// Light the patches behind word t, or the whole picture where t is -1.
function light(t) {
  [...$("caption").children].forEach((word, i) => word.setAttribute("aria-pressed", String(i === t)));
  $("calm").hidden = chosen < 0;
  $("stage").classList.toggle("lit", t >= 0 && !!answer.attention);
  $("why").replaceChildren(...(t >= 0 ? reasons(t) : hint()));
  if (t >= 0 && answer.attention) shade(answer.attention, t);
}

function hint() {
  const text = answer.attention ? "Point at a word, or step through the words with the arrow keys, to see where it came from." : "This model keeps no attention maps.";
  return [element("p", text, { className: "soft" })];
}

function reasons(t) {
  const lines = [];
  if (answer.attention) {
    const weights = answer.attention.weights[t];
    const top = weights.indexOf(Math.max(...weights));
    const [row, column] = [Math.floor(top / answer.attention.columns), top % answer.attention.columns];
    lines.push(`“${answer.tokens[t]}”: strongest patch in row ${row + 1} of ${answer.attention.rows}, column ${column + 1} of ${answer.attention.columns} (${percent(weights[top])})`);
  }
  if (answer.sentinel) lines.push(percent(1 - answer.sentinel[t]) + " seen, the rest came from language alone");
  const concepts = conceptsOf(t);
  if (concepts) lines.push("Concepts of its patches: " + concepts);
  for (const one of (answer.prototypes || [])[t] || []) {
    lines.push(`Memory prototype ${one.index}, ${percent(one.weight)}` + (one.captions.length ? ": like “" + one.captions.slice(0, 2).join("”, “") + "”" : ""));
  }
  return lines.map((line) => element("p", line));
}

function conceptsOf(t) {
  if (!answer.concepts || !answer.attention || answer.concepts.length !== answer.attention.weights[t].length) return "";
  const shares = new Map();
  answer.concepts.forEach((concept, i) => shares.set(concept, (shares.get(concept) || 0) + answer.attention.weights[t][i]));
  const best = [...shares].filter((pair) => pair[1] > 0).sort((a, b) => b[1] - a[1]);
  return best.slice(0, 3).map(([concept, share]) => concept + " " + percent(share)).join(", ");
}

// Darken what the word did not look at: the map over its own maximum, enlarged by the browser's smoothing, over the part that the model saw.
function shade(attention, t) {
  const small = new OffscreenCanvas(attention.columns, attention.rows);
  const pen = small.getContext("2d");
  const pixels = pen.createImageData(attention.columns, attention.rows);
  const weights = attention.weights[t];
  const most = Math.max(...weights, 1e-12);
  weights.forEach((weight, i) => (pixels.data[4 * i + 3] = Math.round(255 * DIM * (1 - Math.max(weight, 0) / most))));
  pen.putImageData(pixels, 0, 0);
  const canvas = $("shade");
  const scale = 480 / Math.max(answer.width, answer.height);
  canvas.width = Math.max(1, Math.round(answer.width * scale));
  canvas.height = Math.max(1, Math.round(answer.height * scale));
  const [left, top, right, bottom] = [0, 1, 2, 3].map((i) => attention.box[i] * (i % 2 ? canvas.height : canvas.width));
  const large = canvas.getContext("2d");
  large.fillStyle = `rgba(0, 0, 0, ${DIM})`;
  large.fillRect(0, 0, canvas.width, canvas.height);
  large.clearRect(left, top, right - left, bottom - top);
  large.imageSmoothingQuality = "high";
  large.drawImage(small, left, top, right - left, bottom - top);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(answer.caption);
  } catch {
    const text = document.body.appendChild(element("textarea", answer.caption));
    text.select();
    document.execCommand("copy");
    text.remove();
    $("copy").focus();
  }
  $("status").textContent = "Copied: " + answer.caption;
}

function needPicture() {
  if (!picture) throw { message: "There is no picture yet.", do: "choose, drop or paste one first" };
  return { method: "POST", body: picture, headers: { "Content-Type": "application/octet-stream" } };
}

function scored(list, answers) {
  const line = ({ text, probability }) => {
    const item = element("li");
    item.append(element("meter", "", { value: probability }), element("span", text + " " + percent(probability)));
    return item;
  };
  list.replaceChildren(...answers.slice(0, 10).map(line));
}

async function search() {
  const body = JSON.stringify({ text: $("query").value, k: 12 });
  const found = await call("/search", { method: "POST", body, headers: { "Content-Type": "application/json" } });
  const cards = found.hits.map((hit) => {
    const card = element("div", undefined, { className: "sample" });
    if (hit.picture) card.append(element("img", undefined, { src: hit.picture, alt: "" }));
    card.append(element("span", hit.name, { className: "name" }), element("p", "score " + hit.score.toFixed(3), { className: "soft" }));
    return card;
  });
  $("hits").replaceChildren(...(cards.length ? cards : [element("p", "Nothing was found.")]));
}

function submit(form, work) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(work);
  });
}

$("file").addEventListener("change", () => {
  take($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) take(file);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
$("model").addEventListener("change", () => picture && guarded(captioned));
$("copy").addEventListener("click", copy);
$("calm").addEventListener("click", () => choose(chosen));
submit("token-form", async () => {
  sessionStorage.setItem("token", $("token").value);
  await begin();
});
submit("ask-form", async () => {
  const question = new URLSearchParams({ question: $("question").value });
  scored($("answers"), (await call("/ask?" + question, needPicture())).answers);
});
submit("label-form", async () => {
  const labels = $("labels").value.split(",").map((label) => label.trim()).filter(Boolean);
  const options = new URLSearchParams(labels.map((label) => ["label", label]));
  scored($("labelled"), (await call("/label?" + options, needPicture())).answers);
});
submit("search-form", search);
guarded(begin);
