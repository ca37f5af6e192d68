"use strict";
// Votes on pairs of answers. A vote is kept in the browser as soon as it is given, under the answers' fingerprint.
(() => {
  const { make, count, passage } = shared;
  const { fingerprint, questions } = JSON.parse(document.getElementById("data").textContent);
  const PLACE = `gadjax votes ${fingerprint}`; // in the browser's storage
  const FORMAT = 1;
  const VOTES = ["left", "right", "tie"];
  const $ = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll(".vote")];
  const state = { voter: "", votes: {}, at: 0 }; // votes: by set, prompt and models, as the saved file holds them
  const keyOf = ({ set, id, left, right }) => JSON.stringify([set, id, left, right]);
  const asked = questions.map((one) => ({ set: one.set, id: one.id, left: one.left.model, right: one.right.model }));
  const given = (at) => state.votes[keyOf(asked[at])]?.vote;
  const say = (text) => ($("message").textContent = text);

  const keep = () => {
    try {
      localStorage.setItem(PLACE, JSON.stringify({ voter: state.voter, votes: Object.values(state.votes) }));
    } catch {
      say("This browser keeps no votes: save them before you close the page.");
    }
  };
  const remember = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(PLACE));
      if (!kept) return;
      state.voter = kept.voter;
      state.votes = Object.fromEntries(kept.votes.map((vote) => [keyOf(vote), vote]));
    } catch {
      say("This browser keeps no votes: save them before you close the page.");
    }
  };

  const show = () => {
    const voted = asked.filter((_, at) => given(at)).length;
    const question = questions[state.at];
    $("where").textContent = question ? `${count(state.at + 1)} of ${count(questions.length)}` : "the end";
    $("voted").textContent = `· ${count(voted)} ${voted === 1 ? "vote" : "votes"}`;
    $("question").hidden = !question;
    $("end").hidden = Boolean(question);
    const without = questions.length - voted;
    $("left-over").textContent = without ? `${count(without)} of ${count(questions.length)} pairs have no vote.` : "Every pair has a vote.";
    $("back").disabled = state.at === 0;
    $("on").disabled = !question;
    for (const button of buttons) {
      button.disabled = !question;
      button.setAttribute("aria-pressed", String(Boolean(question) && given(state.at) === button.dataset.vote));
    }
    if (!question) return;
    const turns = question.prompt.map(([role, text]) =>
      make("div", "turn", make("span", "role", role === "user" ? "Prompt" : role), passage(text, null)));
    $("prompt").replaceChildren(...turns);
    for (const side of ["left", "right"]) $(side).replaceChildren(passage(question[side].text, null));
  };
  const go = (at) => {
    state.at = Math.min(Math.max(0, at), questions.length);
    show();
    scrollTo(0, 0);
  };
  const firstOpen = () => {
    const open = asked.findIndex((_, at) => !given(at));
    return open < 0 ? questions.length : open;
  };
  const vote = (choice) => {
    const question = asked[state.at];
    if (!question) return;
    state.votes[keyOf(question)] = { ...question, vote: choice };
    say("");
    keep();
    go(state.at + 1);
  };

  const save = () => {
    const voter = $("voter").value.trim();
    if (!voter) {
      say("Write your name first: the evaluation tells people's votes apart by it.");
      $("voter").focus();
      return;
    }
    const text = JSON.stringify({ format: FORMAT, voter, fingerprint, votes: Object.values(state.votes) }, null, 1);
    const address = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    const name = `votes-${voter.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
    Object.assign(make("a"), { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    say(`Saved as ${name}.`);
  };

  // What is wrong with a loaded file, or "".
  const fault = (saved) => {
    if (saved?.format !== FORMAT || typeof saved.voter !== "string" || !Array.isArray(saved.votes)) return "is no file of votes";
    if (saved.fingerprint !== fingerprint) return "holds votes on the answers of another evaluation";
    const good = (one) => VOTES.includes(one?.vote) && ["set", "id", "left", "right"].every((field) => typeof one[field] === "string");
    return saved.votes.every(good) ? "" : "is damaged";
  };
  const load = async (file) => {
    let saved;
    try {
      saved = JSON.parse(await file.text());
    } catch {
      saved = null;
    }
    const wrong = fault(saved);
    if (wrong) {
      say(`${file.name} ${wrong}.`);
      return;
    }
    const own = Object.keys(state.votes).length;
    const other = own && state.voter && state.voter !== saved.voter;
    if (other && !confirm(`Replace the ${count(own)} votes of ${state.voter} with those of ${saved.voter}?`)) return;
    if (other) state.votes = {};
    state.voter = $("voter").value = saved.voter;
    for (const one of saved.votes) state.votes[keyOf(one)] = one;
    say(`Loaded ${count(saved.votes.length)} votes of ${saved.voter}.`);
    keep();
    go(firstOpen());
  };

  $("voter").addEventListener("input", () => {
    state.voter = $("voter").value.trim();
    keep();
  });
  $("save").addEventListener("click", save);
  $("load").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => {
    if ($("file").files.length) await load($("file").files[0]);
    $("file").value = ""; // the same file can be chosen again
  });
  $("clear").addEventListener("click", () => {
    if (!confirm("Remove all votes and the name from this browser? Saved files stay.")) return;
    state.votes = {};
    state.voter = $("voter").value = "";
    say("");
    keep();
    go(0);
  });
  $("back").addEventListener("click", () => go(state.at - 1));
  $("on").addEventListener("click", () => go(state.at + 1));
  for (const button of buttons) button.addEventListener("click", () => vote(button.dataset.vote));
  const keys = {
    1: () => vote("left"),
    2: () => vote("right"),
    0: () => vote("tie"),
    Backspace: () => go(state.at - 1),
    ArrowLeft: () => go(state.at - 1),
    ArrowRight: () => go(state.at + 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.id === "voter" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });

  remember();
  $("voter").value = state.voter;
  $("voting").hidden = false;
  state.at = firstOpen();
  show();
})();
