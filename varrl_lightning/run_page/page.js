"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const waiting = new Set(document.querySelectorAll("[data-spec]"));
  const options = { actions: false, renderer: "svg", tooltip: { theme: "custom", disableDefaultStyle: false } };
  const draw = (place) => {
    if (!waiting.delete(place)) return Promise.resolve();
    return vegaEmbed(place, specs[Number(place.dataset.spec)], options).then(
      () => { place.dataset.drawn = "yes"; },
      (error) => { place.textContent = `This plot could not be drawn: ${error.message}`; },
    );
  };
  const later = window.requestIdleCallback || ((call) => setTimeout(call, 20));
  const drawNext = () => {
    const [next] = waiting;
    if (next) draw(next).then(() => later(drawNext));
    else document.documentElement.dataset.drawn = "all";
  };
  // What is seen comes first; the rest follows while nothing else is to do, so that the page opens at once.
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watch.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "200px" });
  for (const place of waiting) watch.observe(place);
  later(drawNext);
  window.addEventListener("beforeprint", () => { for (const place of waiting) draw(place); });

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  const form = document.getElementById("filters");
  if (form) filtered(form, document.getElementById("sample-table"), document.getElementById("shown"));

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    for (const head of heads) {
      const button = head.querySelector("button");
      if (button) button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table.tBodies[0], heads.indexOf(head), down ? -1 : 1);
      });
    }
  }

  function sort(body, column, sign) {
    const key = (row) => row.cells[column].dataset.value ?? "";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      // What has no value is last in both directions.
      if (x === "" || y === "") return (x === "") - (y === "");
      const difference = Number(x) - Number(y);
      return sign * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
    });
    body.append(...rows);
  }

  function filtered(form, table, shown) {
    const rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
    const value = (name) => (form.elements[name] ? form.elements[name].value.trim() : "");
    const within = (row) => {
      const column = heads.indexOf(value("column"));
      const [low, high] = [value("low"), value("high")];
      if (column < 0 || (low === "" && high === "")) return true;
      const cell = row.cells[column].dataset.value;
      return cell !== "" && (low === "" || Number(cell) >= Number(low)) && (high === "" || Number(cell) <= Number(high));
    };
    const apply = () => {
      const text = value("text").toLocaleLowerCase();
      let count = 0;
      for (const row of rows) {
        const same = (name) => value(name) === "" || row.dataset[name] === value(name);
        const keep = row.dataset.text.toLocaleLowerCase().includes(text) && ["run", "stage", "correct"].every(same) && within(row);
        row.hidden = !keep;
        count += keep;
      }
      shown.textContent = `${count} of ${rows.length} samples`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("reset", () => setTimeout(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }
})();
