// The pages work without this. It draws the parts of a page that change anew, asks
// before a job is run by hand, and offers the reader's own time zone.
"use strict";
(() => {
  for (const form of document.querySelectorAll("form[data-confirm]")) {
    form.addEventListener("submit", (event) => {
      if (!confirm(form.dataset.confirm)) event.preventDefault();
    });
  }

  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const zone = document.getElementById("zone");
  const mine = document.querySelector("[data-own-zone]");
  if (own && zone && mine && zone.value !== own) {
    mine.hidden = false;
    mine.addEventListener("click", () => { zone.value = own; });
  }

  // A box in the head of the table marks all jobs of the page.
  const addBox = () => {
    const head = document.querySelector("th.mark");
    if (!head || head.querySelector("input")) return;
    const all = document.createElement("input");
    all.type = "checkbox";
    all.setAttribute("aria-label", "Mark all jobs of this page");
    all.addEventListener("change", () => {
      for (const box of document.querySelectorAll("td.mark input")) box.checked = all.checked;
    });
    head.replaceChildren(all);
  };
  addBox();

  // The notice of what was done is not to come back with the page.
  const here = new URL(location.href);
  if (here.searchParams.has("done")) {
    here.searchParams.delete("done");
    here.searchParams.delete("n");
    history.replaceState(null, "", here);
  }

  const every = Number(document.body.dataset.refresh);
  const live = () => document.querySelectorAll("[data-live]");
  if (!(every > 0) || live().length < 2) return;
  const note = document.querySelector("[data-refreshing]");
  // A part that somebody is at stays as it is: one with the focus, with a marked job,
  // with something unfolded or selected.
  const busy = (part) =>
    part.contains(document.activeElement) ||
    part.querySelector("input:checked, details[open]") ||
    (!getSelection().isCollapsed && part.contains(getSelection().anchorNode));
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of live()) {
        const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
        if (other && !busy(part)) part.replaceChildren(...other.childNodes);
      }
      addBox();
      note.textContent = "";
    } catch {
      note.textContent = " · the service does not answer; what you see may be old";
    }
  };
  (async () => {
    for (;;) {
      await new Promise((done) => setTimeout(done, every));
      await refresh();
    }
  })();
})();
