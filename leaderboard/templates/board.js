"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

  // What is chosen stands in the address, so that a view can be kept and shared.
  const keep = (key, value) => {
    if (value) state.set(key, value);
    else state.delete(key);
    history.replaceState(null, "", String(state) ? `#${state}` : location.pathname + location.search);
  };

  const theme = byId("theme");
  const showTheme = (name) => {
    if (name) root.dataset.theme = name;
    else delete root.dataset.theme;
    theme.textContent = `Theme: ${name || "system"}`;
  };
  const themes = ["", "light", "dark"];
  theme.hidden = false;
  showTheme(themes.includes(state.get("theme")) ? state.get("theme") : "");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "") + 1) % themes.length];
    showTheme(next);
    keep("theme", next);
  });

  // Closed explanations belong on paper too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open], .aside)");
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });

  const controls = byId("controls");
  if (!controls) return;

  // Sorting: numbers as numbers, missing ones last in either direction, ties in the order of the rank.
  const cellKey = (row, column, words) => {
    const value = row.cells[column].dataset.v;
    return value === "" ? null : words ? value : Number(value);
  };
  const compare = (words, sign) => (a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.rank - b.rank;
    const order = words ? a.key.localeCompare(b.key, "en", { numeric: true }) : a.key - b.key;
    return sign * order || a.rank - b.rank;
  };
  const sort = (table, head, column) => {
    const words = "words" in head.dataset;
    const now = head.getAttribute("aria-sort");
    const first = head.dataset.first === "desc" ? "descending" : "ascending";
    const direction = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
    const body = table.querySelector("tbody.rows");
    const rows = [...body.rows].map((row) => ({ row, key: cellKey(row, column, words), rank: Number(row.cells[0].dataset.v) }));
    rows.sort(compare(words, direction === "ascending" ? 1 : -1));
    body.append(...rows.map((one) => one.row));
    for (const other of all(".heads th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", direction);
  };
  for (const table of all("section.board > .scroll > table:not(.ties)")) {
    all(".heads th", table).forEach((head, column) => {
      if (!head.dataset.first) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      head.setAttribute("aria-sort", column === 2 ? "descending" : "none");
      button.addEventListener("click", () => sort(table, head, column));
    });
  }

  // Filtering.
  const sections = all("section.board").map((section) => ({
    section,
    link: all("nav a").find((a) => a.hash === `#${section.id}`).parentElement,
    none: section.querySelector(".none"),
    rows: all("tbody.rows > tr", section).map((row) => ({
      row,
      trained: Number(row.dataset.trained),
      text: row.cells[1].textContent.toLowerCase(),
    })),
  }));
  const total = sections.reduce((sum, one) => sum + one.rows.length, 0);
  const filters = all("select[data-filter]");
  const search = byId("by-method");
  const budget = byId("by-budget");
  const groups = all("input[data-group]");

  // The budget moves in steps of 1, 2, 5, 10, ...; its right end is no limit.
  const sizes = sections.flatMap((one) => one.rows.map((row) => row.trained)).filter((size) => size > 0);
  const largest = sizes.reduce((a, b) => Math.max(a, b), 0);
  const smallest = sizes.reduce((a, b) => Math.min(a, b), largest);
  const stops = [0];
  for (let power = Math.floor(Math.log10(smallest || 1)); stops.at(-1) < largest; power += 1) {
    for (const digit of [1, 2, 5]) {
      const stop = digit * 10 ** power;
      if (stop >= smallest && stops.at(-1) < largest) stops.push(stop);
    }
  }
  stops[stops.length - 1] = Infinity;
  budget.max = stops.length - 1;
  const count = new Intl.NumberFormat("en", { notation: "compact" });
  const within = (limit) => (limit === Infinity ? "any" : limit === 0 ? "none trained" : `≤ ${count.format(limit)}`);

  const apply = () => {
    const limit = stops[Number(budget.value)];
    const wanted = search.value.trim().toLowerCase().split(/\s+/);
    const chosen = Object.fromEntries(filters.map((filter) => [filter.dataset.filter, filter.value]));
    let shown = 0;
    let tables = 0;
    for (const one of sections) {
      const data = one.section.dataset;
      const fits = ["dataset", "backbone", "rule"].every((key) => !chosen[key] || data[key] === chosen[key]);
      let here = 0;
      for (const { row, trained, text } of one.rows) {
        row.hidden = !(
          trained <= limit
          && (!chosen.scoring || row.dataset.scoring === chosen.scoring)
          && wanted.every((word) => text.includes(word))
        );
        here += !row.hidden;
      }
      one.section.hidden = one.link.hidden = !fits;
      one.none.hidden = here > 0;
      if (fits) {
        shown += here;
        tables += 1;
      }
    }
    const said = within(limit);
    byId("budget").textContent = said;
    budget.setAttribute("aria-valuetext", said);
    byId("shown").textContent = `${shown} of ${total} rows in ${tables} of ${sections.length} tables`;
  };
  const applyGroups = () => {
    for (const box of groups) root.classList.toggle(`hide-${box.dataset.group}`, !box.checked);
  };

  const known = (select, value) => [...select.options].some((option) => option.value === value);
  const restore = () => {
    for (const filter of filters) {
      const value = state.get(filter.dataset.filter) || "";
      filter.value = known(filter, value) ? value : "";
    }
    search.value = state.get("method") || "";
    const stop = state.has("budget") ? stops.indexOf(Number(state.get("budget"))) : -1;
    budget.value = stop < 0 ? stops.length - 1 : stop;
    const hidden = (state.get("hide") || "").split(" ");
    for (const box of groups) box.checked = !hidden.includes(box.dataset.group);
    apply();
    applyGroups();
  };

  for (const filter of filters) {
    filter.addEventListener("change", () => {
      keep(filter.dataset.filter, filter.value);
      apply();
    });
  }
  search.addEventListener("input", () => {
    keep("method", search.value.trim());
    apply();
  });
  budget.addEventListener("input", () => {
    const limit = stops[Number(budget.value)];
    keep("budget", limit === Infinity ? "" : String(limit));
    apply();
  });
  for (const box of groups) {
    box.addEventListener("change", () => {
      keep("hide", groups.filter((one) => !one.checked).map((one) => one.dataset.group).join(" "));
      applyGroups();
    });
  }
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", (event) => {
    event.preventDefault();
    const kept = state.get("theme");
    for (const key of [...state.keys()]) state.delete(key);
    keep("theme", kept);
    restore();
  });
  controls.hidden = false;
  restore();
})();
