
// Browsers may keep a page for their Back button even if it says no-store. Empty the
// page when the visitor leaves it, and reload it when the visitor comes back: the
// visitor may have logged out meanwhile.
addEventListener("pagehide", () => document.documentElement.replaceChildren());
addEventListener("pageshow", (event) => event.persisted && location.reload());
