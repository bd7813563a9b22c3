// Puts in what the stream of events brings, and lets time go by in between.
"use strict";

(() => {
  const SILENCE = 40000; // The server tells something every 15 s.
  const PATIENCE = 2000;

  const live = document.getElementById("live");
  const connection = document.getElementById("connection");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  let source = null;
  let time = null;
  let received = 0;
  let heard = 0;
  let seen = null;
  let growing = null;

  // The window of the timeline: a bar is drawn without an end, and is seen up
  // to now.
  function show() {
    const [begin, end] = time.window;
    let until = end;
    if (time.growing) {
      const now = time.now + (performance.now() - received) / 1000;
      until = Math.min(end, Math.max(begin + 0.001, now));
    }
    const share = `${(100 * (until - begin)) / (end - begin)}%`;
    for (const bar of live.querySelectorAll("svg.bar")) {
      bar.setAttribute("viewBox", `${begin} 0 ${until - begin} 1`);
      bar.setAttribute("width", share);
    }
  }

  function stand() {
    clearInterval(growing);
    growing = null;
  }

  function take(event) {
    const message = JSON.parse(event.data);
    received = performance.now();
    time = message;
    hear();
    stand();
    if (message.growing) {
      growing = setInterval(show, calm.matches ? 1000 : 100);
    }
    return message;
  }

  function put(cell, html) {
    // To put in the same again would make a screen reader tell it again.
    if (cell.innerHTML !== html) {
      cell.innerHTML = html;
    }
  }

  function cellsOf(root) {
    const cells = root.querySelectorAll("[data-cell]");
    return new Map(Array.from(cells, (cell) => [cell.dataset.cell, cell]));
  }

  function entitle() {
    const headline = live.querySelector("[data-cell=headline]");
    document.title = `${headline.textContent.trim()} – tsrv`;
  }

  function takeCells(event) {
    const cells = cellsOf(live);
    for (const [name, html] of Object.entries(take(event).cells)) {
      put(cells.get(name), html);
    }
    show();
    entitle();
  }

  function takePage(event) {
    const page = document.createElement("template");
    page.innerHTML = take(event).html;
    const cells = cellsOf(live);
    const others = cellsOf(page.content);
    if ([...cells.keys()].join() === [...others.keys()].join()) {
      for (const [name, other] of others) {
        put(cells.get(name), other.innerHTML);
      }
    } else {
      live.replaceChildren(page.content);
    }
    show();
    entitle();
  }

  function hear() {
    heard = performance.now();
    seen = new Date();
    if (document.documentElement.dataset.connection !== "live") {
      document.documentElement.dataset.connection = "live";
      connection.textContent = "Live";
    }
  }

  function lose() {
    stand();
    if (document.documentElement.dataset.connection !== "lost") {
      document.documentElement.dataset.connection = "lost";
      const last = seen ? `, last seen at ${seen.toLocaleTimeString()}` : "";
      connection.textContent = `Not connected${last}; trying again`;
    }
  }

  function connect() {
    heard = performance.now();
    source = new EventSource("status/events");
    source.addEventListener("page", takePage);
    source.addEventListener("cells", takeCells);
    source.addEventListener("beat", hear);
    source.addEventListener("error", () => {
      lose();
      if (source.readyState === EventSource.CLOSED) {
        // It was refused, and the browser would not ask again.
        setTimeout(connect, PATIENCE * (1 + Math.random()));
      }
    });
  }

  setInterval(() => {
    const silent = performance.now() - heard > SILENCE;
    if (silent && source.readyState === EventSource.OPEN) {
      source.close();
      lose();
      connect();
    }
  }, SILENCE / 8);

  connect();
})();
