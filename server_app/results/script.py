"""The script of a run's page and of a comparison's, which needs nothing but the page itself."""

SCRIPT = """\
// What a reader has chosen in a table stays when the page of what goes on reloads itself.
const place = (what) => what + " " + location.pathname;
const remember = (what, value) => {
  try { sessionStorage.setItem(place(what), JSON.stringify(value)); } catch { /* not on this page */ }
};
const remembered = (what) => {
  try { return JSON.parse(sessionStorage.getItem(place(what))); } catch { return null; }
};

[...document.querySelectorAll("table.sortable")].forEach((table, number) => {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  if (body.rows.length > 20) filterable(table, body, heads, `filter ${number}`);
  sortable(body, heads, `sorted ${number}`);
});

// Sorts a table by the column whose head is clicked; a second click turns the order round. What a cell shows may be
// rounded, or have a unit: its data-number goes before that.
function sortable(body, heads, name) {
  const order = new Intl.Collator("en", { numeric: true });
  const sort = (column, descending) => {
    const numbers = heads[column].classList.contains("number");
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[column];
      const text = cell.textContent.trim();
      return [numbers ? parseFloat(cell.dataset.number ?? text.replaceAll(",", "")) : text, row];
    });
    rows.sort(([a], [b]) => {
      if (numbers && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);  // a dash is last in both orders
      return (descending ? -1 : 1) * (numbers ? a - b : order.compare(a, b));
    });
    body.append(...rows.map(([, row]) => row));
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      sort(column, descending);
      remember(name, [column, descending]);
    });
    head.append(button);
  });
  const [column, descending] = remembered(name) ?? [];
  if (column < heads.length) sort(column, descending);
}

// Puts a box above a long table that leaves the rows which hold all the words typed there.
function filterable(table, body, heads, name) {
  const rows = [...body.rows].map((row) => [row.textContent.toLowerCase(), row]);
  const bar = document.createElement("div");
  const label = document.createElement("label");
  const box = document.createElement("input");
  const count = document.createElement("span");
  box.type = "search";
  const words = heads.filter((head) => !head.classList.contains("number")).map((head) => head.textContent);
  box.placeholder = words.slice(0, 3).join(", ").toLowerCase() + " …";
  count.setAttribute("role", "status");
  const filter = () => {
    const words = box.value.toLowerCase().split(/\\s+/);
    let left = 0;
    for (const [text, row] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    count.textContent = `${left.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  box.addEventListener("input", () => {
    filter();
    remember(name, box.value);
  });
  label.append("Filter ", box);
  bar.className = "filter";
  bar.append(label, count);
  table.parentElement.before(bar);
  box.value = remembered(name) ?? "";
  filter();
}
"""
