// What pages do beyond HTML: the colour scheme, keys, following the end of a transcript. Every page works without it.
(() => {
  const root = document.documentElement;
  const SCHEMES = ["auto", "light", "dark"];
  const stored = (name, other) => {
    try {
      return localStorage.getItem(name) ?? other;
    } catch {
      return other;
    }
  };
  const store = (name, value) => {
    try {
      localStorage.setItem(name, value);
    } catch {
      // A browser that keeps nothing shows the page as its system likes it.
    }
  };

  const paint = (scheme) => {
    root.dataset.scheme = scheme;
    const button = document.getElementById("scheme");
    button.hidden = false;
    button.textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[scheme];
    button.setAttribute("aria-label", `Colours: ${scheme}`);
  };
  root.dataset.scheme = stored("scheme", "auto");

  const rows = () => [...document.querySelectorAll("main tbody tr")];
  const move = (by) => {
    const all = rows();
    const at = all.findIndex((row) => row.classList.contains("at"));
    const next = all[Math.min(Math.max(at + by, 0), all.length - 1)];
    all.forEach((row) => row.classList.toggle("at", row === next));
    const link = next?.querySelector("a");
    (link ?? next)?.focus();
    next?.scrollIntoView({ block: "nearest" });
  };
  const press = (verdict) => document.querySelector(`button[name=verdict][value=${verdict}]`)?.focus();
  const go = (name) => document.getElementById(`nav-${name}`)?.click();
  const PLACES = { r: "runs", i: "inbox", s: "sessions", w: "workers", h: "health" };
  const KEYS = {
    j: () => move(1),
    k: () => move(-1),
    x: () => document.querySelector("tr.at input[type=checkbox]")?.click(),
    a: () => press("approve"),
    r: () => press("reject"),
    "/": () => document.querySelector("input[type=search]")?.focus(),
    "?": () => document.getElementById("keys").showModal(),
  };
  let going = false;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), textarea, select, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || stored("keys", "on") === "off") return;
    const act = going && PLACES[event.key] ? () => go(PLACES[event.key]) : KEYS[event.key];
    going = event.key === "g";
    if (!act) return;
    event.preventDefault();
    act();
  });

  // The end of a transcript is followed while it is on the screen, and left alone when the reader has scrolled away.
  let following = false;
  document.addEventListener("htmx:before:swap", () => {
    const saying = document.getElementById("saying")?.getBoundingClientRect();
    following = Boolean(saying) && saying.bottom > 0 && saying.bottom <= window.innerHeight;
  });
  document.addEventListener("htmx:after:swap", () => {
    if (!following) return;
    const saying = document.getElementById("saying");
    if (saying && saying.getBoundingClientRect().bottom > window.innerHeight) saying.scrollIntoView({ block: "end" });
  });

  document.addEventListener("DOMContentLoaded", () => {
    paint(root.dataset.scheme);
    document.getElementById("scheme").addEventListener("click", () => {
      const scheme = SCHEMES[(SCHEMES.indexOf(root.dataset.scheme) + 1) % SCHEMES.length];
      store("scheme", scheme);
      paint(scheme);
    });
    const keys = document.getElementById("keys-on");
    keys.checked = stored("keys", "on") === "on";
    keys.addEventListener("change", () => store("keys", keys.checked ? "on" : "off"));
  });
})();
