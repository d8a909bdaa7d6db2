"use strict";

// A click on a head sorts by its column: numbers by their first one, the largest on top first; empty cells stay below.
function compare(a, b) {
  const [x, y] = [parseFloat(a), parseFloat(b)];
  return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
}

function sort(head) {
  const rows = [...head.closest("table").tBodies[0].rows];
  const keys = new Map(rows.map((row) => [row, row.cells[head.cellIndex].textContent.trim()]));
  const filled = rows.filter((row) => keys.get(row));
  const numeric = filled.every((row) => !isNaN(parseFloat(keys.get(row))));
  const was = head.getAttribute("aria-sort");
  const direction = was ? (was === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  filled.sort((a, b) => sign * compare(keys.get(a), keys.get(b)));
  head.closest("table").tBodies[0].append(...filled, ...rows.filter((row) => !keys.get(row)));
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button.parentElement));
}

// Lines that hold every word of the search, in any order.
for (const field of document.querySelectorAll("input[type=search]")) {
  const rows = document.querySelectorAll("#" + field.dataset.filter + " tbody tr");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

// The slider moves all sheets of its gallery to one frame.
for (const slider of document.querySelectorAll("input[type=range]")) {
  const names = slider.dataset.names.split("|");
  const show = () => {
    slider.closest("details").style.setProperty("--frame", slider.value);
    slider.setAttribute("aria-valuetext", names[slider.value]);
    slider.nextElementSibling.value = names[slider.value];
  };
  slider.addEventListener("input", show);
  show(); // a browser may keep a slider's place over a reload
}
