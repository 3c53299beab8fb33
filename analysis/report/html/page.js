// Light and dark, folded sections that open by themselves, rows that lead to their runs, and copies of tables.
"use strict";
{
  const page = document.documentElement;
  page.classList.add("scripted");

  // ---- colours ------------------------------------------------------------------------------------------------------

  // A browser may refuse to keep anything for a page that is opened from a file.
  const kept = (value) => {
    try {
      if (value !== undefined) localStorage.setItem("bbcu-colours", value);
      return localStorage.getItem("bbcu-colours");
    } catch {
      return null;
    }
  };
  const colours = document.createElement("select");
  for (const name of ["auto", "light", "dark"]) colours.append(new Option(name, name));
  const colour = () => {
    if (colours.value === "auto") delete page.dataset.colours;
    else page.dataset.colours = colours.value;
  };
  colours.value = ["light", "dark"].includes(kept()) ? kept() : "auto";
  colours.addEventListener("change", () => {
    kept(colours.value);
    colour();
  });
  colour();
  const label = document.createElement("label");
  label.className = "colours";
  label.append("Colours ", colours);
  document.querySelector("header").prepend(label);

  // ---- links into folded sections, and print ------------------------------------------------------------------------

  const reveal = () => {
    const name = location.hash.slice(1); // the places of a page are plain letters, of which nothing is encoded
    if (!name) return;
    if (!document.getElementById(name)) document.dispatchEvent(new Event("show-every-row"));
    const target = document.getElementById(name);
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target?.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  addEventListener("load", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) reveal();
  });

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of opened) fold.open = false;
  });

  // A row leads where its last link does: that is the cell which the row is about, and not the one it is compared with.
  document.addEventListener("click", (event) => {
    const links = event.target.closest("tbody tr")?.querySelectorAll("a[href^='#runs-']");
    if (links?.length && !event.target.closest("a, button") && getSelection().isCollapsed) links[links.length - 1].click();
  });

  // ---- copies -------------------------------------------------------------------------------------------------------

  const known = JSON.parse(document.getElementById("Tables").textContent);

  const inLatex = ({ pieces, lines, heights }, rows, most) => {
    const parts = [[]];
    let taken = 0;
    for (const row of rows) {
      if (parts.at(-1).length && taken + heights[row] > most) {
        parts.push([]);
        taken = 0;
      }
      parts.at(-1).push(lines[row]);
      taken += heights[row];
    }
    const [needs, start, label, head, end] = pieces;
    return needs + parts.map((part, place) => {
      const [number, name] = parts.length > 1 ? [` (${place + 1} of ${parts.length})`, `-${place + 1}`] : ["", ""];
      return start + number + label + name + head + part.join(" \\\\\n") + end;
    }).join("");
  };
  const copies = {
    CSV: ({ csv }, rows) => [csv[0], ...rows.map((row) => csv[row + 1])].map((line) => `${line}\n`).join(""),
    Markdown: ({ markdown }, rows) =>
      [...markdown.slice(0, 2), ...rows.map((row) => markdown[row + 2])].map((line) => `${line}\n`).join(""),
    LaTeX: ({ latex, most_lines: most }, rows) => inLatex(latex, rows, most),
  };

  const copy = async (text) => {
    if (navigator.clipboard && isSecureContext) {
      try {
        await navigator.clipboard.writeText(text);
        return true;
      } catch {
        // Not allowed here; the older way may be.
      }
    }
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  };

  document.querySelectorAll(".table").forEach((box, place) => {
    const numbers = new Map([...box.querySelectorAll("tbody tr")].map((row, number) => [row, number]));
    const shown = () => [...box.querySelectorAll("tbody tr")].filter((row) => numbers.has(row)).map((row) => numbers.get(row));
    const said = document.createElement("span");
    said.setAttribute("role", "status");
    const line = document.createElement("p");
    line.className = "copies";
    for (const [name, write] of Object.entries(copies)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `Copy as ${name}`;
      button.addEventListener("click", async () => {
        const rows = shown();
        const done = await copy(write(known[place], rows));
        button.focus();
        said.textContent = done ? `Copied ${rows.length} row${rows.length === 1 ? "" : "s"} as ${name}.` : "The browser does not let a page copy.";
      });
      line.append(button, " ");
    }
    line.append(said);
    box.after(line);
  });
}
