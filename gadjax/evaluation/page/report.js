"use strict";
// A hint below each table that is wider than its place, until it was scrolled to its end.
(() => {
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = box.nextElementSibling;
    const look = () => (hint.hidden = box.scrollLeft + box.clientWidth >= box.scrollWidth - 1);
    new ResizeObserver(look).observe(box);
    box.addEventListener("scroll", look);
  }
})();

// Answers side by side.
(() => {
  const { make, count, textOf, written, passage } = shared;
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const PAGE = 50; // prompts of the list at once
  const $ = (id) => document.getElementById(id);
  const state = { rows: data.rows, at: 0, page: 0, hidden: new Set() };

  // Every text of a row that is searched.
  const texts = (row) => [
    row.id,
    ...row.prompt.map(([, text]) => textOf(text)),
    ...Object.values(row.answers).map((answer) => textOf(answer.text)),
  ];

  const pattern = (query) => {
    if (!query.trim()) return null;
    return new RegExp(query.trim().replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&").replace(/\s+/g, "\\s+"), "giu");
  };

  const judged = (row) =>
    Object.entries(row.answers).filter(([c, a]) => !state.hidden.has(Number(c)) && a.score !== undefined).map(([, a]) => a.score);
  const spread = (values) => (values.length > 1 ? Math.max(...values) - Math.min(...values) : -1);
  const tokens = (row) =>
    Object.entries(row.answers).filter(([c, a]) => !state.hidden.has(Number(c)) && Number.isFinite(a.tokens)).map(([, a]) => a.tokens);
  const orders = { "": ["as in the files", null], lengths: ["lengths differ most", (row) => spread(tokens(row))] };
  const anyJudged = data.rows.some((row) => judged(row).length > 1);
  if (anyJudged) {
    orders.judge = ["judge scores differ most", (row) => spread(judged(row))];
    orders.low = ["lowest judge score", (row) => (judged(row).length ? 100 - Math.min(...judged(row)) : -1)];
  }

  const option = (select, value, text) => select.append(Object.assign(make("option", "", text), { value }));
  const categories = () => {
    const set = $("set").value;
    const found = data.rows.filter((row) => row.category && (set === "" || row.set === Number(set)));
    const names = [...new Set(found.map((row) => row.category))].sort((a, b) => a.localeCompare(b));
    const before = $("category").value;
    $("category").replaceChildren();
    option($("category"), "", "all");
    names.forEach((name) => option($("category"), name, name));
    $("category").value = names.includes(before) ? before : "";
    $("category-label").hidden = names.length < 2;
  };

  const filter = (keep) => {
    const found = pattern($("query").value);
    const test = found && new RegExp(found.source, "iu");
    const [set, category, cut] = ["set", "category", "cut"].map((id) => $(id).value);
    const current = state.rows[state.at];
    state.rows = data.rows.filter((row) => {
      if (set !== "" && row.set !== Number(set)) return false;
      if (category && row.category !== category) return false;
      if (cut) {
        const some = Object.entries(row.answers).some(([c, answer]) => answer.cut && !state.hidden.has(Number(c)));
        if (some !== (cut === "some")) return false;
      }
      return !test || texts(row).some((text) => test.test(text));
    });
    const key = orders[$("order").value][1];
    if (key) {
      const keys = new Map(state.rows.map((row) => [row, key(row)]));
      state.rows.sort((a, b) => keys.get(b) - keys.get(a));
    }
    state.found = found;
    const again = keep ? state.rows.indexOf(current) : -1;
    go(Math.max(0, again));
  };

  const go = (at) => {
    state.at = Math.min(Math.max(0, at), Math.max(0, state.rows.length - 1));
    state.page = Math.floor(state.at / PAGE);
    list();
    detail();
  };

  const snippet = (row) => {
    const turns = row.prompt.filter(([role]) => role === "user");
    return textOf((turns.at(-1) ?? row.prompt[0] ?? ["", ""])[1]).slice(0, 140).replace(/\s+/g, " ");
  };

  const list = () => {
    const first = state.page * PAGE;
    const items = state.rows.slice(first, first + PAGE).map((row, n) => {
      const words = make("span", "words");
      words.append(written(snippet(row), null));
      const facts = [data.sets.length > 1 ? data.sets[row.set] : "", row.category ?? ""].filter(Boolean).join(" · ");
      const button = make("button", "", words, make("span", "facts", facts));
      button.type = "button";
      if (first + n === state.at) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => {
        go(first + n);
        $("list").children[n].firstChild.focus();
      });
      return make("li", "", button);
    });
    $("list").replaceChildren(...items);
    $("list").start = first + 1;
    const all = data.rows.length;
    const some = state.rows.length;
    $("count").textContent = some === all ? `${count(all)} prompts` : `${count(some)} of ${count(all)} prompts`;
    const pages = Math.ceil(some / PAGE);
    $("page").textContent = pages > 1 ? `${count(first + 1)} to ${count(Math.min(first + PAGE, some))}` : "";
    document.querySelector(".pages").hidden = pages < 2;
    $("page-back").disabled = state.page === 0;
    $("page-on").disabled = state.page >= pages - 1;
    const current = $("list").querySelector("[aria-current]");
    if (current) {
      const box = $("list");
      const place = current.offsetTop - box.offsetTop;
      if (place < box.scrollTop || place + current.offsetHeight > box.scrollTop + box.clientHeight)
        box.scrollTop = place - box.clientHeight / 3;
    }
  };

  const card = (column, answer) => {
    const head = make("h4", "", make("span", `dot ${column.colour}`), make("span", "who", column.name));
    if (column.note) head.append(make("span", "unit", column.note));
    const facts = make("p", "facts");
    if (Number.isFinite(answer.tokens)) facts.append(make("span", "", `${count(answer.tokens)} tokens`));
    if (answer.cut) facts.append(make("span", "badge", "cut at the limit"));
    if (answer.score !== undefined) {
      const score = make("span", "score", `judge ${answer.score.toFixed(1)}`);
      facts.append(score, make("span", "", `marks ${answer.mark} : ${answer.reference} reference`));
    }
    const box = make("section", "card", head, facts, passage(answer.text, state.found));
    if (answer.verdict && textOf(answer.verdict)) {
      box.append(make("details", "", make("summary", "", "What the judge wrote"), passage(answer.verdict, null)));
    }
    return box;
  };

  const detail = () => {
    const row = state.rows[state.at];
    $("nothing").hidden = Boolean(row);
    $("previous").disabled = state.at <= 0;
    $("next").disabled = state.at >= state.rows.length - 1;
    $("prompt").replaceChildren();
    $("cards").replaceChildren();
    $("where").replaceChildren();
    if (!row) return;
    const facts = [data.sets[row.set], row.category, row.id].filter(Boolean).join(" · ");
    $("where").append(make("strong", "", `${count(state.at + 1)} of ${count(state.rows.length)}`), " ", make("span", "facts", facts));
    for (const [role, text] of row.prompt) {
      const turn = make("div", "turn", make("span", "role", role === "user" ? "Prompt" : role), passage(text, state.found));
      $("prompt").append(turn);
    }
    data.columns.forEach((column, number) => {
      $("columns").children[number].hidden = !row.answers[number];
      if (row.answers[number] && !state.hidden.has(number)) $("cards").append(card(column, row.answers[number]));
    });
  };

  // What the form offers.
  option($("set"), "", "all");
  data.sets.forEach((name, number) => data.rows.some((row) => row.set === number) && option($("set"), number, name));
  $("set-label").hidden = data.sets.length < 2;
  Object.entries(orders).forEach(([value, [text]]) => option($("order"), value, text));
  data.columns.forEach((column, number) => {
    const box = Object.assign(make("input"), { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      state.hidden[box.checked ? "delete" : "add"](number);
      filter(true);
    });
    const label = make("label", "", box, make("span", `dot ${column.colour}`), column.name);
    $("columns").append(label);
  });
  categories();

  let timer;
  $("query").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => filter(false), 120);
  });
  const form = document.querySelector(".filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => (categories(), filter(true))));
  form.addEventListener("change", (event) => {
    if (event.target.id === "query") return;
    if (event.target.id === "set") categories();
    filter(false);
  });
  $("clear").addEventListener("click", () => $("reset").click());
  $("previous").addEventListener("click", () => go(state.at - 1));
  $("next").addEventListener("click", () => go(state.at + 1));
  const turn = (by) => {
    state.page += by;
    list();
    $("list").scrollTop = 0;
  };
  $("page-back").addEventListener("click", () => turn(-1));
  $("page-on").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") go(state.at + 1);
    else if (event.key === "k") go(state.at - 1);
    else if (event.key === "/") {
      event.preventDefault();
      $("query").focus();
    }
  });

  $("browser").hidden = false;
  filter(true);
})();
