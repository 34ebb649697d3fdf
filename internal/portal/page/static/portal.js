// The portal works without this script. It adds live updates, dialogs and a
// few conveniences.
(() => {
  "use strict";
  const live = () => document.querySelector("#live[data-topics]");
  const busy = () => document.querySelector("dialog[open]") !== null;

  // Live pages: the stream says what has changed, the page reads itself again.
  // While a dialog is open nothing moves under the user's hands.
  let wanted = false, timer = 0, stream = null, last = 0;
  const refresh = () => {
    const at = live();
    if (!at || !window.htmx) return;
    if (busy() || document.hidden) { wanted = true; return; }
    wanted = false;
    if (timer) return;
    timer = setTimeout(() => {
      timer = 0; last = Date.now();
      if (busy()) { wanted = true; return; }
      window.htmx.trigger(at, "portal-refresh");
    }, Math.max(0, 500 - (Date.now() - last)));
  };
  const follows = (topic) => {
    const at = live();
    if (!at) return false;
    const kind = topic.split("/")[0];
    return at.dataset.topics.split(" ").some((t) => t === topic || t === kind || topic === t.split("/")[0] + "/");
  };
  const listen = () => {
    if (!live() || !window.EventSource) return;
    stream = new EventSource("/portal/events");
    stream.addEventListener("change", (e) => { if (follows(e.data)) refresh(); });
    stream.addEventListener("hello", () => document.documentElement.dataset.stream = "on");
    window.addEventListener("pagehide", () => stream.close(), { once: true });
  };
  // Polling is the net: fast without a stream, slow for times and for lost events.
  let ticks = 0;
  setInterval(() => {
    ticks++;
    const open = stream && stream.readyState === EventSource.OPEN;
    if (!open || ticks % 6 === 0) refresh();
    if (stream && stream.readyState === EventSource.CLOSED && ticks % 6 === 0) { stream.close(); listen(); }
  }, 5000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && wanted) refresh(); });

  // Dialogs: links open them in place; without script the link's page has them open.
  let struck = 0; // when a key that is still down has opened a dialog
  const show = (dialog, from) => {
    if (dialog.open) dialog.close();
    const point = from && from.dataset.point, choose = dialog.querySelector("select[name=point]");
    if (choose && from) {
      if (point && ![...choose.options].some((o) => o.value === point)) choose.add(new Option(point, point));
      choose.value = point || "";
    }
    reveal(dialog);
    dialog.showModal();
    const first = dialog.querySelector("[autofocus], label input:not([type=checkbox]):not([type=radio]), select, textarea, footer button");
    if (first) first.focus();
  };
  const reveal = (root) => root.querySelectorAll("[data-shows]").forEach((radio) => {
    const target = document.getElementById(radio.dataset.shows);
    if (target) target.hidden = !radio.checked;
  });
  const matches = (form) => form.querySelectorAll("[data-confirm]").forEach((input) => {
    const button = form.querySelector("[type=submit]");
    if (button) button.disabled = input.value !== input.dataset.confirm;
  });

  document.addEventListener("click", (e) => {
    const opener = e.target.closest("[data-dialog]");
    if (opener && !e.ctrlKey && !e.metaKey && !e.shiftKey) {
      const dialog = document.getElementById(opener.dataset.dialog);
      if (dialog) { e.preventDefault(); if (e.detail === 0) struck = Date.now(); show(dialog, opener); dialog.querySelectorAll("form").forEach(matches); }
      return;
    }
    if (e.target.closest("[data-close]")) { e.target.closest("dialog").close(); return; }
    if (e.target instanceof HTMLDialogElement) { // the backdrop
      const r = e.target.getBoundingClientRect();
      if (e.clientX < r.left || e.clientX > r.right || e.clientY < r.top || e.clientY > r.bottom) e.target.close();
      return;
    }
    const copy = e.target.closest("[data-copy]");
    if (copy && navigator.clipboard) {
      navigator.clipboard.writeText(copy.parentElement.querySelector("code").textContent).then(() => {
        copy.classList.add("done"); setTimeout(() => copy.classList.remove("done"), 1500);
      }, () => {});
      return;
    }
    document.querySelectorAll("details.menu[open]").forEach((m) => { if (!m.contains(e.target)) m.open = false; });
  });
  document.addEventListener("keydown", (e) => {
    if (e.key === "Escape") document.querySelectorAll("details.menu[open]").forEach((m) => { m.open = false; m.querySelector("summary").focus(); });
    // Buttons that are links act on the key's way down; the rest of the key stroke must not
    // reach the dialog that has just opened, and send its form.
    if ((e.key === " " || e.key === "Enter") && e.target.matches && e.target.matches("a[role=button]")) { e.preventDefault(); if (!e.repeat) e.target.click(); }
    if (e.key === "/" && !busy() && !/^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) {
      const find = document.querySelector(".find input");
      if (find) { e.preventDefault(); find.focus(); }
    }
  });
  document.addEventListener("keyup", () => { struck = 0; });
  document.addEventListener("close", (e) => { if (e.target instanceof HTMLDialogElement) { if (wanted) refresh(); dropAsk(); } }, true);
  document.addEventListener("input", (e) => { const form = e.target.closest("form"); if (form && e.target.matches("[data-confirm]")) matches(form); });
  document.addEventListener("change", (e) => {
    if (e.target.matches("[data-submit]")) e.target.form.requestSubmit();
    if (e.target.type === "radio") reveal(e.target.form);
  });
  // One click, one operation.
  document.addEventListener("submit", (e) => {
    if (e.target.method !== "post" || e.defaultPrevented) return;
    if (Date.now() - struck < 1000) { e.preventDefault(); return; } // the key that opened the dialog is still down
    if (e.target.dataset.sent) { e.preventDefault(); return; }
    e.target.dataset.sent = "1";
    const wait = "download" in e.target.dataset ? 2000 : 15000;
    setTimeout(() => { delete e.target.dataset.sent; if (wait === 2000) wanted = true; }, wait);
  });
  window.addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((f) => delete f.dataset.sent));

  const dropAsk = () => {
    const u = new URL(location.href);
    if (u.searchParams.has("ask")) { u.searchParams.delete("ask"); u.searchParams.delete("point"); u.searchParams.delete("network"); history.replaceState(null, "", u); }
  };
  document.querySelectorAll("dialog[open]").forEach((d) => { d.close(); show(d); d.querySelectorAll("form").forEach(matches); });
  reveal(document);
  listen();
})();
