// Draws the grid of members, and asks for the page again to put what has changed in its place.
"use strict";

const EVERY = 2000; // milliseconds
const TALLEST = 420; // pixels that the grid fills at most, while cells can still be seen
const SMALLEST = 3, LARGEST = 26;
const SIGNS = { acknowledged: "✓", current: "·", "re-registered": "↻", pending: "…", missing: "✕", dead: "†" };

const grid = document.querySelector(".grid");
const live = document.getElementById("live");
const canvas = document.createElement("canvas");
const tip = document.createElement("div");
const caption = document.createElement("p");
let shape = { columns: 1, size: LARGEST };

function draw() {
  const cells = grid.dataset.cells, states = grid.dataset.states.split(" ");
  grid.hidden = !cells.length;
  if (!cells.length) return;
  const style = getComputedStyle(document.documentElement);
  const box = getComputedStyle(grid);
  const width = grid.clientWidth - parseFloat(box.paddingLeft) - parseFloat(box.paddingRight);
  const fits = Math.floor(Math.sqrt((width * TALLEST) / cells.length));
  const size = Math.max(SMALLEST, Math.min(LARGEST, fits));
  const columns = Math.max(1, Math.floor(width / size));
  const rows = Math.ceil(cells.length / columns), gap = size >= 12 ? 2 : 1;
  const sharp = window.devicePixelRatio || 1;
  canvas.width = columns * size * sharp;
  canvas.height = rows * size * sharp;
  // The page may have no styles of its own in its markup, but its script may set them.
  canvas.style.width = `${columns * size}px`;
  canvas.style.height = `${rows * size}px`;
  canvas.setAttribute("aria-label", grid.getAttribute("aria-label"));
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.font = `bold ${Math.round(size * 0.55)}px sans-serif`;
  const colours = states.map((state) => style.getPropertyValue(`--${state}`).trim());
  for (let place = 0; place < cells.length; place++) {
    const number = cells.charCodeAt(place) - 97, state = states[number];
    const x = (place % columns) * size, y = Math.floor(place / columns) * size, side = size - gap;
    pen.fillStyle = colours[number];
    pen.fillRect(x, y, side, side);
    if (size >= 12) {
      pen.fillStyle = state === "pending" ? "#10161a" : style.getPropertyValue("--on").trim();
      pen.fillText(SIGNS[state], x + side / 2, y + side / 2 + 1);
    }
  }
  shape = { columns, size };
}

function placeOf(event) {
  const column = Math.floor(event.offsetX / shape.size), row = Math.floor(event.offsetY / shape.size);
  const place = row * shape.columns + column;
  return column < shape.columns && place < grid.dataset.cells.length ? place : null;
}

let asked = null;
async function name(event) {
  const place = placeOf(event);
  if (place === asked) return;
  asked = place;
  tip.hidden = true;
  if (place === null) return;
  const [left, top] = [canvas.offsetLeft + event.offsetX, canvas.offsetTop + event.offsetY];
  await new Promise((done) => setTimeout(done, 80)); // whoever only passes by asks nothing
  if (asked !== place) return;
  const answer = await fetch(`/member?${new URLSearchParams({ group: grid.dataset.group, at: place })}`);
  const text = await answer.text();
  if (asked !== place || !answer.ok) return;
  tip.textContent = text;
  tip.style.left = `${Math.min(left + 12, grid.clientWidth - 200)}px`;
  tip.style.top = `${top + 16}px`;
  tip.hidden = false;
}

function show(place) {
  if (place !== null) location.assign(`?${new URLSearchParams({ group: grid.dataset.group, at: place })}`);
}

function put(page) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const now = page.querySelector(`[data-live="${part.dataset.live}"]`);
    if (now && now.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) part.replaceWith(now);
  }
  const cells = page.querySelector(".grid");
  const changed = cells && cells.dataset.cells !== grid.dataset.cells;
  if (!changed) return;
  grid.dataset.cells = cells.dataset.cells;
  grid.setAttribute("aria-label", cells.getAttribute("aria-label"));
  draw();
}

let since = null;
async function look() {
  try {
    const answer = await fetch(location.href, { signal: AbortSignal.timeout(15000) });
    if (!answer.ok) throw new Error(answer.status);
    put(new DOMParser().parseFromString(await answer.text(), "text/html"));
    since = null;
  } catch {
    since = since || new Date();
  }
  live.className = since ? "away" : "";
  live.textContent = since ? `no answer since ${since.toLocaleTimeString()}` : "live";
  live.hidden = false;
  setTimeout(look, document.hidden ? 5 * EVERY : EVERY);
}

if (grid) {
  canvas.setAttribute("role", "img");
  tip.id = "tip";
  tip.hidden = true;
  caption.textContent = "A cell for each member, in the order of the table; a click shows its row.";
  grid.append(canvas, tip, caption);
  canvas.addEventListener("mousemove", name);
  canvas.addEventListener("mouseleave", () => { asked = null; tip.hidden = true; });
  canvas.addEventListener("click", (event) => show(placeOf(event)));
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  const marked = document.querySelector(".marked");
  if (marked) marked.scrollIntoView({ block: "center" });
  look();
}
