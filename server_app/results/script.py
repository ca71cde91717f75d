"""The script of `report.html`, which needs nothing but the page itself."""

SCRIPT = """\
// Sorts a table by the column whose head is clicked; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const place = "sorted " + location.pathname;  // keeps the order when the page of a running run reloads itself
  const sort = (column, descending) => {
    const numbers = heads[column].classList.contains("number");
    const rows = [...body.rows].map((row) => {
      const text = row.cells[column].textContent.trim();
      return [numbers ? parseFloat(text.replaceAll(",", "")) : text, row];
    });
    rows.sort(([a], [b]) => {
      if (numbers && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);  // a dash is last in both orders
      const order = numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
      return descending ? -order : order;
    });
    for (const [, row] of rows) body.append(row);
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
      try { sessionStorage.setItem(place, JSON.stringify([column, descending])); } catch { /* not on this page */ }
    });
    head.append(button);
  });
  try {
    const [column, descending] = JSON.parse(sessionStorage.getItem(place));
    sort(column, descending);
  } catch { /* nothing was sorted before */ }
}
"""
