// Opens the box for a line comment below the line that was clicked. Everything else works without a script.
document.addEventListener("click", (event) => {
  const plus = event.target.closest("button.plus");
  const cancel = event.target.closest("button.cancel");
  if (cancel) cancel.closest("tr").remove();
  if (!plus) return;
  const row = plus.closest("tr");
  const box = document.getElementById("compose").content.cloneNode(true);
  for (const name of ["path", "line", "side"]) box.querySelector(`[name=${name}]`).value = plus.dataset[name];
  row.after(box);
  row.nextElementSibling.querySelector("textarea").focus();
});
