// The notes of a figure's marks: shown at once under the pointer, by a tap, or by the arrow keys in the figure's one tab
// stop. A mark that names a cell leads to its runs, and the other marks of the cell stand out with it.
"use strict";
(() => {
  const NEAR = 12; // pixels from which a small mark is reached
  const SMALL = 24; // pixels; a larger mark is reached from BESIDE it
  const BESIDE = 5;
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "note";
  tip.hidden = true;
  tip.ariaHidden = "true"; // a screen reader reads the name of the mark
  let shown = null;

  function place() {
    const mark = shown.element.getBoundingClientRect();
    const figure = shown.figure.parentElement.getBoundingClientRect();
    // A long line has its note where the pointer is.
    const x = shown.at && mark.width > SMALL ? shown.at.x : (mark.left + mark.right) / 2;
    const top = shown.at && mark.height > SMALL ? shown.at.y - NEAR : mark.top;
    const bottom = shown.at && mark.height > SMALL ? shown.at.y + NEAR : mark.bottom;
    const left = Math.min(Math.max(x, figure.left), figure.right) - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    const above = top - tip.offsetHeight - 8;
    tip.style.top = `${above > 0 ? above : bottom + 8}px`;
  }

  function hide() {
    if (!shown) return;
    shown.figure.classList.remove("chosen");
    for (const element of shown.figure.querySelectorAll(".same")) element.classList.remove("same");
    tip.hidden = true;
    shown = null;
  }

  function show(figure, mark, element, at) {
    if (shown?.mark !== mark) {
      hide();
      const all = [...figure.querySelectorAll("[data-note]")];
      const same = mark.runs ? all.filter((each) => each.dataset.runs === mark.runs) : [];
      for (const each of [...mark.elements, ...same]) each.classList.add("same");
      figure.classList.toggle("chosen", same.length > mark.elements.length);
      tip.textContent = mark.text;
      tip.hidden = false;
    }
    shown = { figure, mark, element, at };
    place();
  }

  function follow(mark) {
    if (!mark.leads) return;
    hide();
    if (location.hash === `#${mark.runs}`) dispatchEvent(new HashChangeEvent("hashchange"));
    else location.hash = mark.runs;
  }

  function marksOf(figure) {
    const marks = new Map();
    for (const element of figure.querySelectorAll("[data-note]")) {
      const number = Number(element.dataset.note);
      const title = element.querySelector("title");
      const { runs } = element.dataset;
      const leads = Boolean(document.getElementById(runs)); // of many cells, the page has the first
      if (!marks.has(number)) marks.set(number, { elements: [], text: title.textContent, runs, leads });
      marks.get(number).elements.push(element);
      title.remove(); // the browser would show it a second time
    }
    return [...marks.entries()].sort(([one], [other]) => one - other).map(([, mark]) => mark);
  }

  function distance(element, at) {
    const box = element.getBoundingClientRect();
    if (Math.max(box.width, box.height) > SMALL) return Infinity;
    return Math.hypot((box.left + box.right) / 2 - at.x, (box.top + box.bottom) / 2 - at.y);
  }

  function start(figure) {
    const marks = marksOf(figure);
    const owner = new Map(marks.flatMap((mark) => mark.elements.map((element) => [element, mark])));
    const stops = marks.map((mark) => mark.elements.find((element) => !element.ariaHidden));
    let stop = 0;
    marks.forEach((mark, place) => {
      stops[place].ariaLabel = mark.text;
      stops[place].tabIndex = place ? -1 : 0;
      if (mark.leads) stops[place].setAttribute("role", "link");
    });

    function under(event) {
      const at = { x: event.clientX, y: event.clientY };
      const around = [[0, 0], [0, -BESIDE], [0, BESIDE], [-BESIDE, 0], [BESIDE, 0]]
        .map(([x, y]) => document.elementFromPoint(at.x + x, at.y + y)?.closest("[data-note]"));
      const near = [...owner.keys()].map((element) => [distance(element, at), element])
        .filter(([away]) => away <= NEAR).sort(([one], [other]) => one - other).map(([, element]) => element);
      const element = [around[0], ...near, ...around].find((each) => owner.has(each));
      return element ? { element, mark: owner.get(element), at } : null;
    }

    function move(to) {
      stops[stop].tabIndex = -1;
      stop = (to + stops.length) % stops.length;
      stops[stop].tabIndex = 0;
    }

    let ready = false; // whether the note had been read before this press
    figure.addEventListener("pointermove", (event) => {
      const found = under(event);
      if (found) show(figure, found.mark, found.element, found.at);
      else hide();
      figure.classList.toggle("over", Boolean(found?.mark.leads));
    });
    figure.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    figure.addEventListener("pointerdown", (event) => {
      const found = under(event);
      ready = event.pointerType === "mouse" || (found !== null && shown?.mark === found.mark);
      if (found) show(figure, found.mark, found.element, found.at);
      else hide();
      event.preventDefault(); // of focus, which would show the note of another mark
    });
    figure.addEventListener("click", (event) => {
      const found = under(event);
      if (found && (ready || event.detail === 0)) follow(found.mark); // no press: a screen reader's click
    });
    figure.addEventListener("focusin", (event) => {
      const place = stops.indexOf(event.target);
      if (place < 0) return;
      move(place);
      show(figure, marks[place], stops[place]);
    });
    figure.addEventListener("focusout", hide);
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const to = { Home: 0, End: stops.length - 1 }[event.key] ?? (step ? stop + step : undefined);
      if (event.key === "Enter") follow(marks[stop]);
      if (to === undefined) return;
      move(to);
      stops[stop].focus();
      event.preventDefault();
    });
  }

  // The figure as a file of its own: in the colours of its attributes, which are those on paper, with its notes and
  // with the outlines that it shares with other figures of the page.
  function save(button) {
    const figure = document.getElementById(button.dataset.figure);
    const copy = figure.cloneNode(true);
    for (const element of copy.querySelectorAll("[data-note]")) {
      const named = [...copy.querySelectorAll(`[data-note="${element.dataset.note}"]`)].find((each) => each.ariaLabel);
      element.prepend(document.createElementNS(copy.namespaceURI, "title"));
      element.firstChild.textContent = named.ariaLabel;
    }
    for (const element of [copy, ...copy.querySelectorAll("[data-note]")]) {
      for (const name of ["class", "tabindex", "role", "aria-hidden"]) element.removeAttribute(name);
    }
    const shared = document.createElementNS(copy.namespaceURI, "defs");
    for (const name of new Set([...copy.querySelectorAll("use")].map((use) => use.getAttribute("href").slice(1)))) {
      if (!copy.querySelector(`#${CSS.escape(name)}`)) shared.append(document.getElementById(name).cloneNode(true));
    }
    copy.prepend(shared);
    const file = new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = button.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  for (const figure of document.querySelectorAll(".figure")) {
    if (figure.querySelector("[data-note]")) start(figure);
  }
  for (const button of document.querySelectorAll("button[data-figure]")) {
    button.hidden = false;
    button.textContent = "Save as SVG";
    button.addEventListener("click", () => save(button));
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("scroll", () => { if (shown) place(); }, { capture: true, passive: true });
})();
