"use strict";
// What the pages share: all text of models goes into a page as text nodes.
const shared = (() => {
  const SHOWN = 3000; // characters of an answer before it is unfolded
  const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]/u;

  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };
  const count = (number) => number.toLocaleString("en");
  const textOf = (value) => (typeof value === "string" ? value : value[0]);
  const lengthOf = (value) => (typeof value === "string" ? value.length : value[1]);

  // Text with what is found marked, and characters that are not seen (or that turn the line round) named.
  const written = (text, found) => {
    const part = document.createDocumentFragment();
    const plain = (piece) => {
      for (const bit of piece.split(new RegExp(`(${CONTROLS.source})`, "u"))) {
        if (CONTROLS.test(bit)) {
          const code = "U+" + bit.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
          const mark = make("span", "control", code);
          mark.title = "a character that cannot be seen";
          part.append(mark);
        } else if (bit) part.append(bit);
      }
    };
    let end = 0;
    for (const hit of found ? text.matchAll(found) : []) {
      plain(text.slice(end, hit.index));
      part.append(make("mark", "", hit[0]));
      end = hit.index + hit[0].length;
    }
    plain(text.slice(end));
    return part;
  };

  // A text in full or its beginning, with a button for the rest of what the page holds.
  const passage = (value, found) => {
    const text = textOf(value);
    const box = make("div", "text");
    const body = make("div", "words");
    box.append(body);
    if (!text) {
      body.append(make("em", "", "empty"));
      return box;
    }
    const show = (limit) => {
      body.replaceChildren(written(text.slice(0, limit), found));
      box.querySelectorAll(".more").forEach((old) => old.remove());
      if (limit < text.length) {
        const more = make("button", "more", `Show ${count(text.length - limit)} more characters`);
        more.type = "button";
        more.addEventListener("click", () => show(text.length));
        box.append(more);
      } else if (lengthOf(value) > text.length) {
        box.append(make("p", "more", `Cut here: the first ${count(text.length)} of ${count(lengthOf(value))} characters.`));
      }
    };
    const later = found && new RegExp(found.source, "iu").test(text.slice(SHOWN - 100)); // a find across the fold too
    show(later || text.length <= SHOWN * 1.2 ? text.length : SHOWN);
    return box;
  };

  return { make, count, textOf, written, passage };
})();
