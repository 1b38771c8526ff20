// The page works without this. With it: copy buttons, and the timeline's cursor and zoom by mouse and keys.
"use strict";
document.body.classList.add("scripted");
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.onclick = async () => {
    const command = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(command);
    } catch {
      // A file, or a page without TLS, in an older browser.
      const area = Object.assign(document.createElement("textarea"), { value: command });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "✔ " + button.dataset.done;
  };
}
for (const box of document.querySelectorAll(".rb-time")) {
  const svg = box.querySelector("svg"), axis = svg.querySelector(".axis"), cursor = svg.querySelector(".cursor");
  const read = box.parentElement.querySelector(".rb-read");
  const left = +svg.dataset.left, right = +svg.dataset.right, height = svg.viewBox.baseVal.height;
  const since = Date.parse(box.dataset.since), span = +box.dataset.span;
  const shown = box.parentElement.querySelector(".rb-shown"), button = box.parentElement.querySelector(".rb-whole");
  let from = +box.dataset.from, to = +box.dataset.to, at = null;
  const x = (s) => left + ((s - from) / (to - from)) * (right - left);
  const iso = (s) => new Date(since + s * 1000).toISOString();
  const clock = (s) => iso(s).slice(11, 19);
  const date = (s) => `${iso(s).slice(0, 10)} ${clock(s)}Z`;
  const whole = () => to - from > span - 1;
  const named = [...svg.querySelectorAll("[data-say]")];
  const series = [...svg.querySelectorAll("[data-values]")].map((g) => [g.dataset.name, JSON.parse(g.dataset.values)]);

  function draw() {
    for (const e of svg.querySelectorAll("rect[data-t]")) {
      const begin = x(+e.dataset.t);
      e.setAttribute("x", begin);
      e.setAttribute("width", Math.max(x(+e.dataset.u) - begin, 3));
    }
    for (const e of svg.querySelectorAll("g[data-t]"))
      e.setAttribute("transform", `translate(${x(+e.dataset.t)} ${e.dataset.y})`);
    for (const e of svg.querySelectorAll("polyline"))
      e.setAttribute("points", e.dataset.p.trim().split(" ").map((p) => p.split(",")).map(([s, y]) => `${x(+s)},${y}`).join(" "));
    const steps = [1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];
    const step = steps.find((s) => (to - from) / s <= 12) || 86400 * Math.ceil((to - from) / 1e6);
    const offset = (since / 1000) % step, ticks = [];
    for (let s = Math.ceil((from + offset) / step) * step - offset; s <= to; s += step) {
      const text = step >= 86400 ? iso(s).slice(5, 10) : clock(s).slice(0, step < 60 ? 8 : 5);
      ticks.push(`<path d="M${x(s)} 18V${height}"/><text x="${x(s)}" y="12">${text}</text>`);
    }
    axis.innerHTML = ticks.join("");
    shown.textContent = `${date(from)} – ${date(to)}`;
    if (!button) return point();
    button.textContent = whole() ? button.dataset.in : button.dataset.out;
    box.parentElement.querySelector(".rb-all").hidden = whole();
    point();
  }
  function point() {
    cursor.setAttribute("visibility", at === null || at < from || at > to ? "hidden" : "visible");
    if (at === null) return;
    cursor.setAttribute("d", `M${x(at)} 18V${height}`);
    const near = (to - from) / 80;
    const values = series.map(([name, all]) => [name, all.find(([b, e]) => b <= at && at < e)]);
    const events = named.filter((e) => (e.dataset.u ? +e.dataset.t <= at && at <= +e.dataset.u : Math.abs(e.dataset.t - at) < near));
    read.textContent = [
      (span > 43200 ? iso(at).slice(5, 10) + " " : "") + clock(at) + "Z",
      ...values.map(([name, v]) => `${name} ${v ? v[2].toLocaleString("en", { maximumFractionDigits: v[2] < 100 ? 1 : 0 }) : "–"}`),
      ...events.map((e) => `${e.dataset.name}: ${e.dataset.say}`),
    ].join(" · ");
  }
  function show(from_, to_) {
    [from, to] = [from_, to_];
    draw();
  }
  // On a narrow screen, where the drawing scrolls, the incident is in the newest part, which is seen first.
  function open() {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width, end = +box.dataset.to;
    const seen = Math.min(Math.max((box.clientWidth / scale - left) / (right - left) || 1, 0.1), 1);
    show(Math.max(end - (end - box.dataset.from) / seen, 0), end);
    box.scrollLeft = box.scrollWidth;
  }
  if (button) button.onclick = () => (whole() ? open() : show(0, span));
  function zoom(factor, around) {
    const length = Math.min(span, Math.max(20, (to - from) * factor));
    from = Math.min(Math.max(around - ((around - from) / (to - from)) * length, 0), span - length);
    to = from + length;
    draw();
  }
  function move(to_) {
    at = Math.min(Math.max(to_, 0), span);
    const shift = at < from ? at - from : at > to ? at - to : 0;
    from += shift;
    to += shift;
    shift ? draw() : point();
  }
  // On a narrow screen the lanes scroll beneath their names.
  box.onscroll = () => {
    const scale = svg.viewBox.baseVal.width / svg.getBoundingClientRect().width;
    svg.querySelector(".names").setAttribute("transform", `translate(${box.scrollLeft * scale} 0)`);
  };
  const second = (event) => {
    const box = svg.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    return from + ((px - left) / (right - left)) * (to - from);
  };
  svg.addEventListener("pointermove", (e) => second(e) >= from && move(Math.min(second(e), to)));
  svg.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && document.activeElement !== box) return; // else the page could not be scrolled
    e.preventDefault();
    zoom(e.deltaY > 0 ? 1.25 : 0.8, Math.min(Math.max(second(e), from), to));
  }, { passive: false });
  open();
  addEventListener("afterprint", open);
  addEventListener("beforeprint", () => { // as without a script
    show(+box.dataset.from, +box.dataset.to);
    box.scrollLeft = 0;
    box.onscroll();
  });
  box.addEventListener("keydown", (e) => {
    const middle = at ?? (from + to) / 2, step = (to - from) / 60;
    const keys = {
      ArrowLeft: () => move(middle - step), ArrowRight: () => move(middle + step),
      Home: () => move(0), End: () => move(span),
      "+": () => zoom(0.7, middle), "=": () => zoom(0.7, middle), "-": () => zoom(1.4, middle), 0: () => zoom(span, middle),
    };
    if (!keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    keys[e.key]();
  });
}
