// Fetches the fragment of the page every second and updates the changed parts.
"use strict";

(() => {
  const INTERVAL_MS = 1000;
  const TIMEOUT_MS = 5000;

  const status = document.getElementById("status");
  const connection = document.getElementById("connection");
  const gone = document.getElementById("gone");
  const program = document.querySelector("h1").textContent;
  const lastSeen = connection.querySelector("time");
  let tag = "";
  let timer = 0;

  // Changes only the differences: focus, selection, scrolling and open details stay.
  function update(element, fresh) {
    for (const { name, value } of fresh.attributes ?? []) {
      element.setAttribute(name, value);
    }
    if (element.nodeName === "TBODY") {
      updateRows(element, fresh);
      return;
    }
    const before = [...element.childNodes];
    const after = [...fresh.childNodes];
    const alike = (node, n) => node.nodeName === after[n].nodeName;
    if (before.length !== after.length || !before.every(alike)) {
      element.replaceChildren(...after);
      return;
    }
    before.forEach((node, n) => {
      if (node.nodeType === Node.TEXT_NODE) {
        if (node.data !== after[n].data) node.data = after[n].data;
      } else if (!node.isEqualNode(after[n])) {
        update(node, after[n]);
      }
    });
  }

  // Rows may change places, but each row stays with its module.
  function updateRows(body, fresh) {
    const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
    let next = body.rows[0] ?? null;
    for (const row of [...fresh.rows]) {
      const old = known.get(row.dataset.key);
      known.delete(row.dataset.key);
      if (old !== undefined && old === next) {
        next = next.nextElementSibling;
      } else {
        body.insertBefore(old ?? row, next);
      }
      if (old !== undefined) update(old, row);
    }
    known.forEach((row) => row.remove());
  }

  function duration(seconds) {
    const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
    const first = units.findIndex(([, size]) => seconds >= size);
    if (first < 0) return "0 s";
    let rest = seconds;
    return units.slice(first, first + 2).map(([unit, size]) => {
      const count = Math.floor(rest / size);
      rest %= size;
      return `${count} ${unit}`;
    }).join(" ");
  }

  const headline = () => status.querySelector(".headline");

  function show(state, title) {
    gone.hidden = state === "live";
    document.documentElement.dataset.connection = state;
    document.title = `${title} – ${program}`;
  }

  function showLive(response) {
    // Shows the time of the server, not of the browser.
    const now = new Date(response.headers.get("Date") ?? Date.now());
    lastSeen.textContent = `${now.toISOString().slice(0, 19).replace("T", " ")} UTC`;
    const { began } = headline().dataset;
    const up = Math.max(0, Math.round((now - new Date(began)) / 1000));
    connection.replaceChildren(lastSeen, began ? `, up for ${duration(up)}` : "");
    show("live", headline().textContent);
  }

  function showGone() {
    const hasStopped = headline().dataset.status.startsWith("stopp");
    const title = hasStopped ? "The server has stopped" : "The server does not answer";
    if (gone.hidden) {
      gone.querySelector(".headline").lastChild.textContent = title;
      gone.querySelector(".situation").textContent =
        `This page shows the state at ${lastSeen.textContent}. Retrying.`;
    }
    show("lost", title);
  }

  async function refresh() {
    try {
      const response = await fetch("status", {
        headers: { "If-None-Match": tag },
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      if (response.status === 200) {
        const template = document.createElement("template");
        template.innerHTML = await response.text();
        update(status, template.content);
        tag = response.headers.get("ETag");
      } else if (response.status !== 304) {
        throw new Error(`status ${response.status}`);
      }
      showLive(response);
    } catch {
      showGone();
    }
    schedule(INTERVAL_MS);
  }

  function schedule(delay) {
    clearTimeout(timer);
    if (!document.hidden) {
      timer = setTimeout(refresh, delay);
    }
  }

  // The browser stays on the page, unless the response is an error.
  status.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { submitter, target } = event;
    const { type } = await fetch(submitter.formAction, {
      method: "POST",
      headers: { Accept: "text/html" },
      redirect: "manual",
    }).catch(() => ({ type: "opaqueredirect" }));
    if (type !== "opaqueredirect") {
      target.action = submitter.formAction;
      target.submit();
    }
    schedule(0);
  });

  document.addEventListener("visibilitychange", () => schedule(0));
  schedule(0);
})();
