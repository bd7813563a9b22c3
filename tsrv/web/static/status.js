// Fetches the fragment of the page every second and puts in what has changed.
"use strict";

(() => {
  const INTERVAL_MS = 1000;
  const TIMEOUT_MS = 5000;

  const status = document.getElementById("status");
  const connection = document.getElementById("connection");
  const program = document.querySelector("h1").textContent;
  let tag = "";
  let timer = 0;
  let lastSeen = "";

  // Changes only what differs: focus, selection, scrolling and open details stay.
  function update(element, fresh) {
    const before = [...element.childNodes];
    const after = [...fresh.childNodes];
    const alike = (node, n) => node.nodeName === after[n].nodeName;
    if (before.length !== after.length || !before.every(alike)) {
      element.replaceChildren(...after);
      return;
    }
    before.forEach((node, n) => {
      if (node.isEqualNode(after[n])) {
        return;
      }
      if (node.nodeType === Node.TEXT_NODE) {
        node.data = after[n].data;
        return;
      }
      for (const { name, value } of after[n].attributes) {
        node.setAttribute(name, value);
      }
      update(node, after[n]);
    });
  }

  function show(state, text) {
    if (connection.textContent !== text) {
      connection.textContent = text;
    }
    document.documentElement.dataset.connection = state;
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
        document.title = `${status.querySelector(".headline").textContent} – ${program}`;
      } else if (response.status !== 304) {
        throw new Error(`status ${response.status}`);
      }
      lastSeen = ` at ${new Date().toLocaleTimeString()}`;
      show("live", "Live");
    } catch {
      show("lost", `Connection lost${lastSeen}; trying again`);
    }
    schedule(INTERVAL_MS);
  }

  function schedule(delay) {
    clearTimeout(timer);
    if (!document.hidden) {
      timer = setTimeout(refresh, delay);
    }
  }

  // The page stays where it is, unless there is an error to show.
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
