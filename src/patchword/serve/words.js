// What made each word: the caption as buttons, the light over the picture, the reasons beside it. Every text is set as text, never as HTML.

const DIM = 0.8; // how dark a patch without a part in the word becomes
const EVEN = 2; // a strongest patch with less than so many times the mean hardly stands out

let answer = null; // the service's answer on show
let chosen = -1; // the word that was clicked: it stays lit

export const $ = (id) => document.getElementById(id);

export function element(tag, text, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), text === undefined ? {} : { textContent: text }, properties);
  made.append(...children);
  return made;
}

// As explain/page.py writes it: what is not nothing is not shown as nothing.
const percent = (share) => (share > 0 && share < 0.0005 ? "< 0.1" : share >= 0.0995 || share === 0 ? Math.round(100 * share) : (100 * share).toFixed(1)) + " %";

function bar(share) {
  const filled = element("i");
  filled.style.width = 100 * Math.min(Math.max(share, 0), 1) + "%";
  const all = element("span", undefined, { className: "share" }, filled);
  all.setAttribute("aria-hidden", "true");
  return all;
}

// A line of a list: text, its share, and a bar of that length; `more` lines below.
export function scoredLine(head, share, ...more) {
  return element("li", undefined, {}, element("span", undefined, { className: "line" }, head, " ", element("b", percent(share))), bar(share), ...more);
}

const spelled = (token) => token.replace(/<\/w>$/, ""); // a subword vocabulary marks the ends of words

export function forget() {
  answer = null;
  $("caption").replaceChildren();
  $("actions").hidden = $("hypotheses").hidden = true;
  settle();
}

export function show(found) {
  answer = found;
  chosen = -1;
  $("picture").alt = answer.caption;
  const explained = answer.attention || answer.prototypes || answer.sentinel;
  if (answer.tokens.length && explained) $("caption").replaceChildren(...answer.tokens.flatMap((token, t) => [wordButton(spelled(token), t), " "]));
  else $("caption").textContent = answer.caption || "(an empty caption)";
  $("actions").hidden = false;
  $("why").classList.toggle("rich", Boolean(answer.concepts || answer.prototypes));
  showHypotheses();
  settle();
}

export const captionText = () => answer.caption;

function wordButton(text, t) {
  const word = element("button", text, { type: "button", onclick: () => choose(t), onpointerenter: () => lightWord(t), onfocus: () => lightWord(t) });
  word.onkeydown = (event) => step(event, t);
  word.tabIndex = t === 0 ? 0 : -1; // one stop of the tab key for all words; the arrow keys go on from there
  return word;
}

const words = () => [...$("caption").querySelectorAll("button")];

function step(event, t) {
  const to = { ArrowRight: t + 1, ArrowLeft: t - 1, ArrowDown: t + 1, ArrowUp: t - 1, Home: 0, End: answer.tokens.length - 1 }[event.key];
  if (event.key === "Escape") {
    chosen = -1;
    settle();
  } else if (to !== undefined) {
    event.preventDefault();
    if (words()[to]) words()[to].focus();
  }
}

export function choose(t) {
  chosen = chosen === t ? -1 : t;
  settle();
}

export const calm = () => choose(chosen);

// What is seen when nothing is pointed at: the chosen word, or the whole picture.
export function settle() {
  if (answer && chosen >= 0) return lightWord(chosen);
  mark(-1);
  shade(null);
  $("why").replaceChildren(...(answer ? hint() : []));
}

function mark(t) {
  words().forEach((word, i) => {
    word.setAttribute("aria-pressed", String(i === t));
    word.style.removeProperty("--share");
    if (t >= 0) word.tabIndex = i === t ? 0 : -1;
  });
  $("calm").hidden = chosen < 0;
}

function lightWord(t) {
  mark(t);
  if (answer.attention) shade(answer.attention.weights[t], true);
  $("why").replaceChildren(...reasons(t));
}

function hint() {
  if (!words().length) return [element("p", "This model keeps no record of where it looked.", { className: "soft" })];
  const text = "Point at a word, or step through the words with the arrow keys, to see where it came from; point at the picture to see which words looked there.";
  return [element("p", text, { className: "soft" }), ...conceptList("Concepts in this picture", patchShares())];
}

function reasons(t) {
  const parts = [element("h3", "“" + spelled(answer.tokens[t]) + "”")];
  if (answer.attention) {
    const weights = answer.attention.weights[t];
    const top = weights.indexOf(Math.max(...weights));
    const map = answer.attention.maps[t] || "attention";
    if (map === "class_activation") parts.push(element("p", "Classes like this word are most active at " + place(top) + " (" + percent(weights[top]) + " of the map)."));
    else if (map === "attention") parts.push(element("p", "Looked most at " + place(top) + " (" + percent(weights[top]) + " of its attention)."));
    if (map === "attention" && weights[top] * weights.length < EVEN) parts.push(element("p", "That is hardly more than elsewhere: this word looked at all of the picture.", { className: "soft" }));
  }
  if (answer.sentinel) {
    const seen = 1 - answer.sentinel[t];
    parts.push(element("p", percent(seen) + " seen, the rest came from language alone."), bar(seen));
  }
  parts.push(...conceptList("Concepts of its patches", conceptsOf(t)));
  const prototypes = (answer.prototypes || [])[t] || [];
  if (prototypes.length) parts.push(element("h4", "Memory that spoke"), element("ul", undefined, { className: "scored" }, ...prototypes.map(prototype)));
  return parts;
}

const place = (i) => `row ${Math.floor(i / answer.attention.columns) + 1} of ${answer.attention.rows}, column ${(i % answer.attention.columns) + 1} of ${answer.attention.columns}`;

function prototype(one) {
  const nearest = one.captions.slice(0, 3).map((caption) => element("q", caption));
  const near = nearest.length ? [element("span", undefined, { className: "nearest soft" }, "near ", ...nearest.flatMap((quote, i) => (i ? [", ", quote] : [quote])))] : [];
  return scoredLine("Prototype " + one.index, one.weight, ...near);
}

const hasConcepts = () => answer.concepts && answer.attention && answer.concepts.length === answer.attention.rows * answer.attention.columns;

function summed(shareOf) {
  const shares = new Map();
  if (hasConcepts()) answer.concepts.forEach((concept, i) => shares.set(concept, (shares.get(concept) || 0) + shareOf(i)));
  return [...shares].filter((pair) => pair[1] > 0).sort((a, b) => b[1] - a[1]);
}

const conceptsOf = (t) => summed((i) => answer.attention.weights[t][i]).slice(0, 4);
const patchShares = () => summed(() => 1 / answer.concepts.length).slice(0, 8);

// Each concept is a button that lights its patches.
function conceptList(title, pairs) {
  if (!pairs.length) return [];
  const lines = pairs.map(([concept, share]) => {
    const light = () => shade(answer.concepts.map((one) => Number(one === concept)), false);
    const name = element("button", concept, { type: "button", className: "concept", onpointerenter: light, onfocus: light, onclick: light });
    name.setAttribute("aria-label", concept + ": light its patches");
    return scoredLine(name, share);
  });
  return [element("h4", title), element("ul", undefined, { className: "scored pairs" }, ...lines)];
}

function showHypotheses() {
  $("hypotheses").hidden = answer.hypotheses.length < 2;
  const lines = answer.hypotheses.map((one) => {
    const line = scoredLine(element("span", one.caption), one.share);
    line.title = one.log_probability === null ? "" : "log-probability " + one.log_probability.toFixed(2);
    return line;
  });
  // Captions that were ranked by consensus as well do not stand in the order of their shares.
  $("hypotheses-order").hidden = answer.hypotheses.every((one, k) => k === 0 || one.share <= answer.hypotheses[k - 1].share);
  $("hypotheses-list").replaceChildren(...lines);
}

// The other way round: a point of the picture, and the words that looked there.
export function pointAt(across, down) {
  if (!answer || !answer.attention) return;
  const { rows, columns, box, weights } = answer.attention;
  const [column, row] = [(columns * (across - box[0])) / (box[2] - box[0]), (rows * (down - box[1])) / (box[3] - box[1])].map(Math.floor);
  if (row < 0 || column < 0 || row >= rows || column >= columns) return settle();
  const i = row * columns + column;
  mark(-1);
  shade(weights[0].map((_, j) => Number(j === i)), false);
  words().forEach((word, t) => word.style.setProperty("--share", (weights[t][i] / Math.max(...weights[t], 1e-12)).toFixed(3)));
  const looked = weights.map((word, t) => [spelled(answer.tokens[t]), word[i]]).sort((a, b) => b[1] - a[1]).slice(0, 3);
  const says = "Words that looked here most: " + looked.map(([word, weight]) => "“" + word + "” " + percent(weight)).join(", ");
  $("why").replaceChildren(element("h3", "Patch in " + place(i)), ...(hasConcepts() ? [element("p", "Its concept: " + answer.concepts[i])] : []), element("p", says));
}

// A question with its answers: its words light where they looked, the answers what they were chosen by.
export function showAsked(question, found) {
  const light = (weights) => () => shade(weights, true, found.attention);
  const asked = found.attention
    ? found.tokens.flatMap((token, t) => [element("button", spelled(token), { type: "button", onpointerenter: light(found.attention.weights[t]), onfocus: light(found.attention.weights[t]) }), " "])
    : [question];
  $("asked").replaceChildren(...asked);
  $("asked").hidden = false;
  $("answers").replaceChildren(...found.answers.map(({ text, probability }) => scoredLine(element("span", text), probability)));
  $("answers").onpointerenter = found.attention && found.looked ? light(found.looked) : null;
}

// Darken what had no part: values over their own maximum, over the part of the picture that the model saw; null lights all of it.
function shade(values, smooth, grid = answer && answer.attention) {
  $("stage").classList.toggle("lit", values !== null);
  if (values === null) return;
  const { rows, columns, box } = grid;
  const small = new OffscreenCanvas(columns, rows);
  const pen = small.getContext("2d");
  const pixels = pen.createImageData(columns, rows);
  const most = Math.max(...values, 1e-12);
  values.forEach((value, i) => (pixels.data[4 * i + 3] = Math.round(255 * DIM * (1 - Math.max(value, 0) / most))));
  pen.putImageData(pixels, 0, 0);
  const canvas = $("shade");
  const scale = 640 / Math.max(answer.width, answer.height);
  canvas.width = Math.max(1, Math.round(answer.width * scale));
  canvas.height = Math.max(1, Math.round(answer.height * scale));
  const [left, top, right, bottom] = [0, 1, 2, 3].map((i) => box[i] * (i % 2 ? canvas.height : canvas.width));
  const large = canvas.getContext("2d");
  large.fillStyle = `rgba(0, 0, 0, ${DIM})`;
  large.fillRect(0, 0, canvas.width, canvas.height);
  large.clearRect(left, top, right - left, bottom - top);
  large.imageSmoothingEnabled = smooth;
  large.imageSmoothingQuality = "high";
  large.drawImage(small, left, top, right - left, bottom - top);
}
