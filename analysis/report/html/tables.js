// Sorts and filters the tables with at least five rows. DataTable is the library above; Python worked out the rest:
// the number that a cell is sorted by (data-order), and which rows each choice leaves.

const known = JSON.parse(document.getElementById("Tables").textContent);

// Missing numbers come last in either order.
const missing = Number.NaN;
const after = (first, second) => Number.isNaN(first) - Number.isNaN(second);
DataTable.ext.type.order["measured-pre"] = (text) => (text === "missing" ? missing : Number(text));
DataTable.ext.type.order["measured-asc"] = (first, second) => after(first, second) || first - second || 0;
DataTable.ext.type.order["measured-desc"] = (first, second) => after(first, second) || second - first || 0;

const element = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};

function sorted(table) {
  const cells = [...table.querySelectorAll("tbody tr:first-child > *")];
  const types = cells.map((cell, target) => ({ target, type: cell.dataset.order === undefined ? "html" : "measured" }));
  return new DataTable(table, {
    paging: false,
    info: false,
    autoWidth: false,
    order: [],
    orderDescReverse: false, // rows that are equal stay in the order of the report
    columnDefs: types.map(({ target, type }) => ({ targets: target, type })),
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    language: { zeroRecords: "No row is left." },
  });
}

function withFilters(box, choices) {
  const table = box.querySelector("table");
  const caption = table.caption.textContent;
  const total = table.tBodies[0].rows.length;
  const rows = sorted(table);
  const text = element("input", { type: "search" });
  const selects = choices.map(({ rows: byValue }) =>
    element("select", {}, new Option("all", ""), ...Object.keys(byValue).map((value) => new Option(value, value)))
  );
  const left = element("span", { className: "count", textContent: `${total} rows` });
  left.setAttribute("role", "status");
  const reset = element("button", { type: "button", textContent: "Reset" });
  const fields = [["Text", text], ...choices.map(({ name }, place) => [name, selects[place]])];
  const labels = fields.map(([name, field]) => element("label", {}, `${name} `, field));
  const group = element("div", { className: "filters" }, ...labels, reset, left);
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", `Filter: ${caption}`);
  box.before(group);

  let chosen = [];
  const show = () => {
    chosen = selects.flatMap(({ value }, place) => (value ? [new Set(choices[place].rows[value])] : []));
    rows.search(text.value).draw();
    const shown = rows.rows({ search: "applied" }).count();
    left.textContent = shown === total ? `${total} rows` : `${shown} of ${total} rows`;
  };
  const clear = () => {
    for (const field of [text, ...selects]) field.value = "";
    rows.order([]);
    show();
  };
  rows.search.fixed("chosen", (_, cells, row) => chosen.every((numbers) => numbers.has(row)));
  text.addEventListener("input", show);
  for (const select of selects) select.addEventListener("change", show);
  reset.addEventListener("click", clear);
  document.addEventListener("show-every-row", clear);
}

// A table of hundreds of rows takes seconds, so a folded one waits until it is unfolded.
document.querySelectorAll(".table").forEach((box, place) => {
  const { filters } = known[place];
  const fold = box.closest("details:not([open])");
  if (filters && fold) fold.addEventListener("toggle", () => withFilters(box, filters), { once: true });
  else if (filters) withFilters(box, filters);
});
