(() => {
  const bar = document.querySelector(".filter");
  if (!bar) return;
  const rows = [...document.querySelectorAll("article")];
  const buttons = [...bar.querySelectorAll("button")];
  const words = bar.querySelector("input");
  const shown = document.getElementById("shown");
  let kind = "all";
  const draw = () => {
    const wanted = words.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const fits = (kind === "all" || row.dataset.tags.split(" ").includes(kind)) &&
        (!wanted || row.textContent.toLowerCase().includes(wanted));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} shown`;
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      kind = button.value;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
  }
  words.addEventListener("input", draw);
  bar.hidden = false;
  draw();
})();
