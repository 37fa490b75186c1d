// The page: what its fields say goes to the server, what the server draws is shown, and the fragment of the address
// holds all that made it.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

const HINTS = {
  faces: "Images of a seed. Choose one to go on with it.",
  switch: "Each row shows the same faces without an attribute and with it.",
  scales: "The same face at several scales of guidance, from left to right.",
  edit: "The image goes to noise and comes back with the attributes that you ask for.",
  inpaint: "Paint over what is to be drawn anew. The rest stays as it is.",
  vary: "Images like this one; the greater the strength, the less alike.",
  interpolate: "From one image to another, by way of their noise.",
};
const RETOUCH = ["edit", "inpaint", "vary", "interpolate"];
const OF_RETOUCH = ["kind", "image", "other", "mask", "strength", "resamplings"];
const OURS = ["mode", "kind", "image", "other", "mask", "switch", "attributes"]; // set by more than a field
const NOTHING = {};
const TABLES = { switch: ["switch"], scales: ["scales"] };

let model; // what the server says of it
let pictures = { image: "", other: "" }; // as base64 of a PNG
let current = null; // { values, done } of what is shown
let pinned = null;
let selected = -1; // which face
let suitedFor = NOTHING;
let running = null; // an AbortController

// ---------------------------------------------------------------- fields and values

const form = $("#form");
const mode = () => form.elements.mode.value;
const words = (name) => name.replaceAll("_", " ");
const field = (key) => form.elements[key];

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function buildFields() {
  const { usual, texts, choices, averages, attributes } = model;
  const options = { ...choices, weights: averages, guide: ["", ...averages.slice(1)] };
  for (const option of options.sampler) field("sampler").append(element("option", { value: option }, option));
  for (const key of Object.keys(usual)) {
    if (OURS.includes(key) || field(key)) continue;
    const id = `more-${key}`;
    let input;
    if (options[key]) {
      input = element("select", {}, ...options[key].map((value) => element("option", { value }, value || "none")));
    } else if (typeof usual[key] === "boolean") {
      input = element("input", { type: "checkbox" });
    } else {
      input = element("input", typeof usual[key] === "number" ? { type: "number", step: "any" } : {});
    }
    Object.assign(input, { name: key, id });
    input.setAttribute("aria-describedby", `${id}-text`);
    const text = element("small", { id: `${id}-text` }, texts[key]);
    $("#more").append(element("div", { className: "field" }, element("label", { htmlFor: id }, words(key)), input, text));
  }
  for (const name of attributes) {
    const states = [["no", "no"], ["", "–"], ["yes", "yes"]].map(([value, sign]) => {
      const radio = element("input", { type: "radio", name: `attribute ${name}`, value, checked: !value });
      radio.setAttribute("aria-label", { no: "no", "": "not told", yes: "yes" }[value]);
      return element("label", {}, radio, element("span", { ariaHidden: "true" }, sign));
    });
    const row = element("fieldset", { className: "states" }, element("legend", {}, words(name)), ...states);
    row.dataset.name = words(name).toLowerCase();
    $("#attributes .list").append(row);
    const box = element("input", { type: "checkbox", name: "switch", value: name });
    $("#switches .list").append(element("label", { className: "check" }, box, words(name)));
  }
  $("#filter").hidden = attributes.length < 12;
  if (!attributes.length) $("#more").prepend($("#guidance"));
  for (const part of $$("[data-needs=attributes]")) part.classList.toggle("never", !attributes.length);
  field("count").max = model.most_images;
  field("steps").max = model.most_steps;
}

function read(key) {
  const input = field(key), usual = model.usual[key];
  if (typeof usual === "boolean") return input.checked;
  if (Array.isArray(usual)) {
    const parts = input.value.split(",").map((part) => part.trim()).filter(Boolean);
    return parts.map((part) => (Number.isNaN(Number(part)) ? part : Number(part)));
  }
  if (typeof usual === "number") return input.value === "" ? "" : Number(input.value);
  return input.value === "" && usual === null ? null : input.value || null;
}

function write(key, value) {
  const input = field(key);
  if (!input || value === undefined) return;
  if (typeof value === "boolean") input.checked = value;
  else input.value = Array.isArray(value) ? value.join(", ") : value ?? "";
  if (input.tagName === "SELECT" && value != null && input.value !== String(value)) {
    input.append(element("option", { value }, value)); // such as a guide's folder
    input.value = value;
  }
}

const attributesAsked = () =>
  model.attributes.flatMap((name) => ({ yes: [name], no: [`-${name}`] })[field(`attribute ${name}`).value] ?? []);

function values() {
  const now = mode(), found = {};
  for (const key of Object.keys(model.usual)) if (!OURS.includes(key)) found[key] = read(key);
  found.attributes = attributesAsked();
  found.switch = now === "switch" ? $$("[name=switch]:checked").map((box) => box.value) : [];
  if (now !== "scales") found.scales = [];
  if (!RETOUCH.includes(now)) for (const key of OF_RETOUCH) delete found[key];
  else {
    Object.assign(found, { kind: now, image: pictures.image });
    if (now === "interpolate") found.other = pictures.other;
    if (now === "inpaint") found.mask = mask.png();
  }
  return found;
}

async function show(given) {
  const all = { ...model.usual, ...given };
  const now = given.kind ?? (all.switch.length ? "switch" : all.scales.length ? "scales" : "faces");
  form.elements.mode.value = now in HINTS ? now : "faces";
  for (const key of Object.keys(model.usual)) if (!OURS.includes(key)) write(key, all[key]);
  if (!all.scales.length) field("scales").value = "0, 1, 2, 4";
  for (const name of model.attributes) {
    field(`attribute ${name}`).value = all.attributes.includes(name) ? "yes" : all.attributes.includes(`-${name}`) ? "no" : "";
  }
  for (const box of $$("[name=switch]")) box.checked = all.switch.includes(box.value);
  for (const slot of ["image", "other"]) if (given[slot]) await place(slot, given[slot], "from the link");
  if (given.mask) await mask.read(given.mask);
  suitedFor = model.suited[now] ?? NOTHING;
  changeMode();
}

function changeMode() {
  const now = mode();
  for (const part of $$("[data-modes]")) part.hidden = !part.dataset.modes.split(" ").includes(now);
  $("#mask").hidden = now !== "inpaint" || !pictures.image;
  $("#hint").textContent = HINTS[now];
  $("#draw").textContent = { edit: "Edit", inpaint: "Paint", vary: "Vary", interpolate: "Mix" }[now] ?? "Draw";
}

// What suits another kind of work: other samplers go back to an image, or fit a part of it to the rest.
function suit() {
  const suited = model.suited[mode()] ?? NOTHING;
  if (suited === suitedFor) return;
  suitedFor = suited;
  for (const key of ["sampler", "steps", "eta", "strength", "resamplings"]) write(key, suited[key] ?? model.usual[key]);
  if (suited.guidance && Number(field("guidance").value) === 1) write("guidance", suited.guidance);
  if (suited.count && Number(field("count").value) < 3) write("count", suited.count);
}

// ---------------------------------------------------------------- the address

const PICTURES = ["image", "other", "mask"];

function fragment(values, facts, prefix = "") {
  const parts = new URLSearchParams();
  for (const key of Object.keys(model.usual)) {
    if (!(key in facts)) continue; // nothing reads it
    const value = PICTURES.includes(key) ? values[key] : facts[key];
    parts.set(prefix + key, Array.isArray(value) ? value.join(",") : value ?? "");
  }
  return parts.toString();
}

function address() {
  const parts = [`model=${model.model.slice(0, 12)}`, fragment(current.values, current.done.facts)];
  if (pinned) parts.push(fragment(pinned.values, pinned.done.facts, "kept."));
  return `#${parts.join("&")}`;
}

function parsed(text, prefix = "") {
  const found = {};
  for (const [name, value] of new URLSearchParams(text)) {
    if (!name.startsWith(prefix)) continue;
    const key = name.slice(prefix.length), usual = model.usual[key];
    if (!Object.hasOwn(model.usual, key)) continue;
    if (Array.isArray(usual)) found[key] = value ? value.split(",").map((part) => (part !== "" && !Number.isNaN(Number(part)) ? Number(part) : part)) : [];
    else if (typeof usual === "number") found[key] = value === "" ? "" : Number(value);
    else if (typeof usual === "boolean") found[key] = value === "true";
    else found[key] = value === "" && !PICTURES.includes(key) ? null : value;
  }
  return found;
}

function complete(given) {
  const all = { ...model.usual, ...given };
  if (!given.kind) for (const key of OF_RETOUCH) delete all[key];
  return all;
}

// Whether what an address asks for was drawn.
async function follow(given) {
  const before = current;
  try {
    await show(given);
  } catch {
    complain("The link holds no whole picture. Copy all of it, and open it again.");
    return false;
  }
  await draw(complete(given));
  return current !== before;
}

async function followAddress() {
  const text = location.hash.slice(1);
  if (!text) return draw();
  const named = new URLSearchParams(text).get("model");
  const kept = parsed(text, "kept."), now = parsed(text);
  if (pinned) pin(false);
  if (Object.keys(kept).length && (await follow(kept))) pin();
  await follow(now);
  if (named && !model.model.startsWith(named)) {
    say("This link was made with another model: the picture is another one, too.");
  }
}

// ---------------------------------------------------------------- drawing

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const [name, data] = block.split("\n");
      yield [name.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

const answerOf = (response) => response.json().catch(() => ({ error: "A defect of the server; its terminal says more." }));

async function draw(wanted = null) {
  running?.abort();
  const mine = (running = new AbortController());
  const asked = wanted ?? values();
  complain("");
  busy(true);
  say("Asking for it");
  try {
    const response = await fetch("api/draw", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
      signal: mine.signal,
    });
    if (!response.ok) throw new Error((await answerOf(response)).error);
    let finished = false;
    for await (const [name, facts] of events(response)) {
      if (name === "wait") say(`${facts.ahead} before you, about ${Math.ceil(facts.seconds)} s`);
      if (name === "step") emerge(facts);
      if (name === "error") throw new Error(facts.error);
      if (name === "done") {
        finished = true;
        current = { values: asked, done: facts };
        present();
      }
    }
    if (!finished) throw new TypeError("cut off");
  } catch (error) {
    if (error.name === "AbortError") {
      if (running === mine) say("Stopped.");
    } else {
      say("");
      complain(error instanceof TypeError ? "The server does not answer. Is `unveil play` still running? Then try again." : error.message);
    }
  } finally {
    if (running === mine) busy(false);
  }
}

function busy(is) {
  if (!is && document.activeElement === $("#stop")) $("#draw").focus(); // which is hidden now
  $("#working").hidden = !is;
  $("#stop").hidden = !is;
  $("#current").setAttribute("aria-busy", is);
  if (!is) running = null;
  $("#progress").value = 0;
}

function lay(sheet, count, columns) {
  sheet.classList.remove("empty");
  sheet.style.setProperty("--columns", Math.min(columns, count));
  sheet.style.setProperty("--rows", Math.ceil(count / columns));
}

function emerge({ part, parts, nfe, of, image, count, columns }) {
  const sheet = $("#current .sheet");
  lay(sheet, count, columns);
  let glimpse = $("img.glimpse", sheet);
  if (!glimpse) {
    glimpse = element("img", { className: "glimpse", alt: "The picture as it emerges" });
    sheet.replaceChildren(glimpse);
  }
  glimpse.src = `data:image/webp;base64,${image}`;
  $("#progress").value = (part + Math.min(nfe / of, 1)) / parts;
  say(parts > 1 ? `Drawing, ${part + 1} of ${parts}` : "Drawing");
}

function present() {
  const { done } = current;
  selected = -1;
  fill($("#current"), current, true);
  $("#after").hidden = false;
  $("#of-face").hidden = true;
  download($("#save"), done.picture, `unveil-seed-${done.facts.seed}.png`);
  const facts = Object.entries(done.facts).map(([key, value]) => [
    element("dt", {}, words(key)),
    element("dd", {}, Array.isArray(value) ? value.join(", ") || "none" : String(value)),
  ]);
  $("#facts dl").replaceChildren(...facts.flat());
  history.replaceState(null, "", address());
  const count = done.images.length;
  say(`${count === 1 ? "One image" : `${count} images`} in ${done.seconds} s, ${done.facts.nfe} evaluations of the network each.`);
  compare();
}

function fill(figure, { done }, choosable) {
  const sheet = $(".sheet", figure);
  lay(sheet, done.images.length, done.columns);
  sheet.replaceChildren(
    ...done.images.map((image, number) => {
      const picture = element("img", { src: `data:image/png;base64,${image}`, alt: done.labels[number] });
      if (!choosable) return picture;
      const button = element("button", { type: "button", title: done.labels[number], ariaPressed: "false" }, picture);
      button.onclick = () => choose(number);
      return button;
    }),
  );
  const facts = done.facts;
  const captions = {
    switch: () => `Rows: ${facts.switch.map(words).join(", ")}; without and with`,
    scales: () => `Guidance ${facts.scales.join(", ")}`,
  };
  const which = Object.keys(TABLES).find((key) => facts[key]?.length);
  $("figcaption", figure).textContent = which ? captions[which]() : "";
}

function choose(number) {
  selected = selected === number ? -1 : number;
  $$("#current .sheet button").forEach((button, at) => (button.ariaPressed = String(at === selected)));
  $("#of-face").hidden = selected < 0;
  if (selected < 0) return;
  $("#chosen").textContent = current.done.labels[selected];
  download($("#save-face"), current.done.images[selected], `unveil-seed-${current.done.facts.seed}-${selected}.png`);
}

function pin(tell = true) {
  pinned = pinned ? null : current;
  $("#pin").setAttribute("aria-pressed", String(pinned !== null));
  $("#pin").textContent = pinned ? "Compare no more" : "Keep, to compare";
  $("#pinned").hidden = !pinned;
  if (pinned) fill($("#pinned"), pinned, false);
  compare();
  if (tell) history.replaceState(null, "", address());
}

function compare() {
  $("#figures").classList.toggle("two", pinned !== null);
  if (!pinned) return;
  const [a, b] = [pinned.done.facts, current.done.facts];
  const differ = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((key) => key !== "nfe" && String(a[key]) !== String(b[key]));
  const shown = (facts) => differ.map((key) => `${words(key)} ${facts[key] === undefined ? "–" : [facts[key]].flat().map((value) => String(value).slice(0, 12)).join(", ") || "none"}`).join("; ");
  $("#pinned figcaption").textContent = differ.length ? `Kept: ${shown(a)}` : "Kept: the same settings";
  $("#current figcaption").textContent = differ.length ? `Now: ${shown(b)}` : "Now";
}

// ---------------------------------------------------------------- words and files

function say(text) {
  if ($("#status").textContent !== text) $("#status").textContent = text; // else a screen reader says it again
}

function complain(text) {
  $("#error").textContent = text;
  $("#error").hidden = !text;
  for (const input of $$("[aria-invalid]")) input.removeAttribute("aria-invalid");
  const wrong = field(text.split(":")[0]);
  if (text.includes(":") && wrong?.setAttribute) {
    wrong.setAttribute("aria-invalid", "true");
    wrong.closest("details")?.setAttribute("open", "");
    wrong.focus();
  }
}

function download(anchor, base64, name) {
  URL.revokeObjectURL(anchor.href);
  anchor.href = URL.createObjectURL(new Blob([Uint8Array.from(atob(base64), (char) => char.charCodeAt(0))], { type: "image/png" }));
  anchor.download = name;
}

async function place(slot, base64, note) {
  pictures[slot] = base64;
  const box = $(`#slot-${slot}`), image = $("img", box);
  image.src = `data:image/png;base64,${base64}`;
  image.alt = slot === "image" ? "The image to start from" : "The other image";
  image.hidden = false;
  $(".note", box).textContent = note;
  await image.decode();
  if (slot === "image") mask.reset();
  changeMode();
}

async function upload(input) {
  const [file] = input.files, slot = input.dataset.slot;
  if (!file) return;
  complain("");
  try {
    const response = await fetch("api/image", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    const answer = await answerOf(response);
    if (!response.ok) throw new Error(answer.error);
    await place(slot, answer.image, answer.words);
  } catch (error) {
    complain(error instanceof TypeError ? "The server does not answer, or the picture is too large for it." : error.message);
  }
  input.value = "";
}

// ---------------------------------------------------------------- the mask

const mask = {
  canvas: $("#mask"),
  at: null, // where the brush is
  reset() {
    this.canvas.width = this.canvas.height = model.image_size;
    this.at = { x: model.image_size / 2, y: model.image_size / 2 };
    this.pixels = new Uint8Array(model.image_size ** 2);
    this.paint();
  },
  dab({ x, y }, value) {
    const radius = ($("#brush").value * model.image_size) / 128, size = model.image_size;
    for (let row = 0; row < size; row++)
      for (let column = 0; column < size; column++)
        if ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2) this.pixels[row * size + column] = value;
    this.paint();
  },
  paint(cursor = document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) {
    const context = this.canvas.getContext("2d"), size = model.image_size;
    const shown = context.createImageData(size, size);
    this.pixels.forEach((is, number) => is && shown.data.set([255, 60, 120, 170], 4 * number));
    context.putImageData(shown, 0, 0);
    if (cursor) {
      context.strokeStyle = "#fff";
      context.beginPath();
      context.arc(this.at.x, this.at.y, Math.max(($("#brush").value * size) / 128, 1), 0, 7);
      context.stroke();
    }
  },
  png() {
    const size = model.image_size, sheet = element("canvas", { width: size, height: size });
    const context = sheet.getContext("2d"), shown = context.createImageData(size, size);
    this.pixels?.forEach((is, number) => shown.data.set([255 * is, 255 * is, 255 * is, 255], 4 * number));
    context.putImageData(shown, 0, 0);
    return sheet.toDataURL("image/png").split(",")[1];
  },
  async read(base64) {
    const image = element("img", { src: `data:image/png;base64,${base64}` });
    await image.decode();
    const size = model.image_size, sheet = element("canvas", { width: size, height: size });
    sheet.getContext("2d").drawImage(image, 0, 0);
    const { data } = sheet.getContext("2d").getImageData(0, 0, size, size);
    this.pixels.forEach((_, number) => (this.pixels[number] = data[4 * number] >= 128 ? 1 : 0));
    this.paint();
  },
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * model.image_size, y: ((event.clientY - box.top) / box.height) * model.image_size };
  },
};

mask.canvas.onpointerdown = mask.canvas.onpointermove = (event) => {
  if (!event.buttons) return;
  event.preventDefault();
  mask.canvas.setPointerCapture(event.pointerId);
  mask.dab((mask.at = mask.place(event)), 1);
};
mask.canvas.onkeydown = (event) => {
  const by = model.image_size / 32;
  const move = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] }[event.key];
  const clip = (value) => Math.min(Math.max(value, 0), model.image_size);
  if (move) mask.at = { x: clip(mask.at.x + move[0]), y: clip(mask.at.y + move[1]) };
  else if (event.key === " ") mask.dab(mask.at, 1);
  else if (event.key === "Delete" || event.key === "Backspace") mask.dab(mask.at, 0);
  else return;
  event.preventDefault();
  mask.paint(true);
};
mask.canvas.onfocus = mask.canvas.onblur = () => mask.paint();

// ---------------------------------------------------------------- what people do

form.onsubmit = (event) => {
  event.preventDefault();
  if (mode() === "switch" && !values().switch.length) return complain("Choose attributes to switch, under “A row for each of”.");
  if (matchMedia("(max-width: 48rem)").matches) $("#stage").scrollIntoView(); // where the picture is above the fields
  draw();
};
form.addEventListener("invalid", (event) => event.preventDefault(), true); // the server says it better
form.noValidate = true;
$("#modes").onchange = () => {
  suit();
  changeMode();
};
$("#stop").onclick = () => running?.abort();
$("#dice").onclick = () => {
  field("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 100000;
  draw();
};
$("#tell-nothing").onclick = () => model.attributes.forEach((name) => (field(`attribute ${name}`).value = ""));
$("#filter").oninput = (event) => {
  const text = event.target.value.trim().toLowerCase();
  for (const row of $$(".states")) row.hidden = !row.dataset.name.includes(text);
};
$("#clear-mask").onclick = () => mask.reset();
$("#pin").onclick = () => pin();
$("#link").onclick = async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say("Copy it from the browser's address.");
  }
};
for (const input of $$("input[type=file]")) input.onchange = () => upload(input);
for (const button of $$("[data-use]")) {
  button.onclick = async () => {
    const image = current.done.images[selected], label = current.done.labels[selected];
    const to = button.dataset.use, other = to === "interpolate" && mode() === "interpolate" && pictures.image;
    form.elements.mode.value = to;
    suit();
    await place(other ? "other" : "image", image, label);
    $(other ? "#slot-other" : "#slot-image").scrollIntoView({ block: "nearest" });
  };
}
window.onhashchange = followAddress;

try {
  model = await (await fetch("api/model")).json();
  const { name, data, image_size, trained } = model;
  $("#about").textContent = `${name}: ${image_size} × ${image_size} pixels, data ${data.source ?? "unknown"}, ${trained.toLocaleString("en")} images seen in training`;
  document.title = `unveil play: ${name}`;
  buildFields();
  mask.reset();
  await show({});
  await followAddress();
} catch (error) {
  complain(`The server does not answer (${error.message}). Is \`unveil play\` still running? Then load the page again.`);
}
