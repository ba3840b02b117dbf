// The page of the service: a picture in, its caption word by word, questions, labels, search. `words.js` shows what made each word.

import { $, calm, captionText, element, forget, pointAt, scoredLine, settle, show, showAsked } from "./words.js";

const MOST_BYTES = 20 * 2 ** 20; // as the service's own limit: a larger body would only be refused after the upload

let picture = null; // the file on show
let kept = null; // the last picture that got a caption, and that: a picture that fails does not take them away
let running = new AbortController(); // the request for its caption: a new picture ends it

const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function complain({ message, do: todo }) {
  $("error-what").textContent = sentence(message);
  $("error-do").textContent = todo ? "What to do: " + sentence(todo) : "";
  $("error").hidden = false;
  $("status").textContent = "";
  $("error").scrollIntoView({ block: "nearest" });
}

// A response that is well, or the service's own error.
async function request(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(options.headers || {}), ...(token ? { Authorization: "Bearer " + token } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { message: "The service does not answer.", do: "see whether it is still running" };
  }
  if (response.ok) return response;
  if (response.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
  }
  const found = await response.json().catch(() => null);
  throw (found && found.error) || { message: "The service answered " + response.status + ".", do: "see its log" };
}

const call = async (path, options) => (await request(path, options)).json();

async function guarded(work) {
  $("error").hidden = true;
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return; // the next picture came first
    complain(error.do ? error : { message: error.message || String(error) });
  }
}

async function begin() {
  const facts = await call("/models");
  $("token-form").hidden = true;
  $("model").replaceChildren(...facts.models.map((model) => element("option", model.name, { value: model.name })));
  $("model-row").hidden = facts.models.length < 2;
  for (const ability of ["ask", "label", "search", "paint"]) $(ability + "-section").hidden = !facts.can[ability];
  const said = (model) => model.name + ": " + [model.description, model.limits].map(sentence).join(" ");
  if (facts.answerer) $("ask-about").textContent = said(facts.answerer);
  if (facts.answerer && facts.answerer.example) $("question").placeholder = facts.answerer.example;
  if (facts.painter) $("paint-about").textContent = said(facts.painter);
  const about = () => ($("about").textContent = said(facts.models[$("model").selectedIndex]));
  $("model").onchange = () => {
    about();
    if (picture) guarded(captioned);
  };
  about();
}

function take(file) {
  if (!file) return;
  guarded(async () => {
    if (file.size > MOST_BYTES) throw { message: "The picture has " + Math.round(file.size / 2 ** 20) + " MB.", do: "choose one of at most 20 MB" };
    display(file);
    for (const list of ["answers", "labelled"]) $(list).replaceChildren();
    forgetHits();
    $("asked").hidden = $("refused").hidden = true;
    await captioned();
  });
}

function display(file) {
  picture = file;
  URL.revokeObjectURL($("picture").src);
  $("picture").hidden = $("unseen").hidden = true;
  $("picture").src = URL.createObjectURL(file);
}

function draft(words) {
  $("draft").hidden = words === null;
  $("draft").replaceChildren(...(words || []).flatMap((word) => [element("span", word), " "]));
}

async function captioned() {
  running.abort();
  const mine = (running = new AbortController());
  forget();
  draft(null);
  document.body.classList.add("busy", "begun");
  $("result").hidden = false;
  $("status").textContent = "Looking at the picture";
  try {
    const found = await streamed(mine.signal);
    kept = { picture, found };
    show(found);
    $("unsure").hidden = !found.unsure;
    $("status").textContent = (found.unsure ? "Unsure caption: " : "Caption: ") + found.caption;
  } catch (error) {
    if (mine === running && kept) {
      display(kept.picture);
      show(kept.found);
      $("unsure").hidden = !kept.found.unsure;
    } else if (mine === running) {
      picture = null;
      $("result").hidden = true;
      document.body.classList.remove("begun");
    }
    throw error;
  } finally {
    if (mine === running) {
      draft(null);
      document.body.classList.remove("busy");
    }
  }
}

// The caption of the search; until that has ended, the words of a quick draft as the model says them.
async function streamed(signal) {
  const options = new URLSearchParams({ stream: "true", trace: "true", n_best: "3", beams: "3" });
  if ($("model").value) options.set("model", $("model").value);
  const said = [];
  for await (const [kind, data] of events(await request("/caption?" + options, { ...pictureBody(), signal }))) {
    if (kind === "draft") draft((said.push(data.token.replace(/<\/w>$/, "")), said));
    if (kind === "error") throw data;
    if (kind === "caption") return data;
  }
  throw { message: "The service broke off.", do: "send the picture again" };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const [kind, data] = part.split("\n");
      yield [kind.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

function pictureBody() {
  if (!picture) throw { message: "There is no picture yet.", do: "choose, drop or paste one first" };
  return { method: "POST", body: picture, headers: { "Content-Type": "application/octet-stream" } };
}

async function copy() {
  try {
    await navigator.clipboard.writeText(captionText());
  } catch {
    const text = document.body.appendChild(element("textarea", captionText()));
    text.select();
    document.execCommand("copy"); // where the service is not on this machine and has no TLS, browsers leave only this
    text.remove();
    $("copy").focus();
  }
  $("status").textContent = "Copied: " + captionText();
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy as alt text"), 1500);
}

const scored = (answers) => answers.slice(0, 10).map(({ text, probability }) => scoredLine(element("span", text), probability));

async function ask(anyway) {
  const question = $("question").value;
  $("answers").replaceChildren();
  $("asked").hidden = $("refused").hidden = true;
  try {
    showAsked(question, await call("/ask?" + new URLSearchParams({ question, anyway, trace: "true" }), pictureBody()));
  } catch (error) {
    if (error.code !== "not_answered") throw error;
    $("refused-what").textContent = sentence(error.message);
    $("refused").hidden = false;
  }
}

// What was found stands only beside the query that found it: a new query, or a new picture, takes it away at once.
let searches = 0;

function forgetHits() {
  searches += 1;
  for (const picture of $("hits").querySelectorAll("img")) URL.revokeObjectURL(picture.src);
  $("hits").replaceChildren();
  $("search-remarks").replaceChildren();
}

async function search() {
  forgetHits();
  const mine = searches;
  const body = JSON.stringify({ text: $("query").value, k: 12 });
  const found = await call("/search", { method: "POST", body, headers: { "Content-Type": "application/json" } });
  if (mine !== searches) return; // a later query, or a picture, came first
  $("search-remarks").textContent = found.remarks.map(sentence).join(" ");
  const cards = found.hits.map((hit) => {
    const name = element("figcaption", undefined, {}, element("span", hit.name, { className: "name" }), element("span", "cosine " + hit.score.toFixed(3), { className: "soft" }));
    const shown = element("span", "", { className: "gone soft" });
    copyOf(hit, shown);
    return element("figure", undefined, {}, shown, name);
  });
  $("hits").replaceChildren(...(cards.length ? cards : [element("p", "Nothing was found.")]));
}

// By `fetch`, since an address in an <img> carries no token; the browser keeps what it got.
async function copyOf(hit, shown) {
  try {
    const address = URL.createObjectURL(await (await request(hit.picture)).blob());
    if (shown.isConnected) shown.replaceWith(element("img", undefined, { src: address, alt: "" }));
    else URL.revokeObjectURL(address);
  } catch {
    shown.textContent = "no picture";
  }
}

async function paint() {
  const body = JSON.stringify({ prompt: $("prompt").value, seed: Number($("seed").value) });
  $("paint-remarks").textContent = "Painting";
  try {
    const found = await call("/paint", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    $("paint-remarks").textContent = ["Generated pictures", ...found.remarks].map(sentence).join(" ");
    $("painted").replaceChildren(
      ...found.pictures.map(({ seed, png }) => {
        const shown = element("img", undefined, { src: "data:image/png;base64," + png, alt: "generated, seed " + seed, className: "pixels" });
        return element("figure", undefined, {}, shown, element("figcaption", "seed " + seed, { className: "soft" }));
      }),
    );
  } catch (error) {
    $("paint-remarks").textContent = "";
    throw error;
  }
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
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
$("picture").addEventListener("load", () => {
  $("stage").style.setProperty("--ratio", $("picture").naturalWidth / $("picture").naturalHeight);
  $("picture").hidden = false;
});
$("picture").addEventListener("error", () => ($("unseen").hidden = !picture));
$("stage").addEventListener("pointermove", (event) => {
  const seen = $("stage").getBoundingClientRect();
  pointAt((event.clientX - seen.left) / seen.width, (event.clientY - seen.top) / seen.height);
});
for (const part of ["stage", "said-box"]) $(part).addEventListener("pointerleave", (event) => event.pointerType === "touch" || settle());
$("said-box").addEventListener("focusout", (event) => $("said-box").contains(event.relatedTarget) || settle());
$("copy").addEventListener("click", copy);
$("calm").addEventListener("click", calm);
submit("token-form", async () => {
  sessionStorage.setItem("token", $("token").value);
  await begin();
});
submit("ask-form", () => ask(false));
$("anyway").addEventListener("click", () => guarded(() => ask(true)));
for (const part of ["asked", "answers"]) {
  $(part).addEventListener("pointerleave", settle);
  $(part).addEventListener("focusout", settle);
}
submit("label-form", async () => {
  const labels = $("labels").value.split(",").map((label) => label.trim()).filter(Boolean);
  const options = new URLSearchParams(labels.map((label) => ["label", label]));
  $("labelled").replaceChildren(...scored((await call("/label?" + options, pictureBody())).answers));
});
submit("search-form", search);
submit("paint-form", paint);
guarded(begin);
