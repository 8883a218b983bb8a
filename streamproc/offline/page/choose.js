"use strict";
/* Chooses who else one person is, among all others: for a pair that is listed nowhere. */

const OTHERS_AT_ONCE = 12;

/** Show `others`, persons with their `similarity` (null where they were not compared), in the order
 * given. `choose` is called with the one who is chosen. */
function openChooser({ person, others, context, choose }) {
  const title = `Who is the same as person ${person.name}?`;
  const list = element("div", { className: "grid" });
  const more = element("button", { type: "button" }, "Show more");
  const close = element("button", { type: "button" }, "Close");
  const dialog = element("dialog", { className: "chooser", "aria-label": title },
    element("h3", {}, title),
    element("p", { className: "hint" }, "The likest first. Left out are those seen apart from this "
      + "person in the same frames, and those who are the same already."),
    list, element("div", { className: "tools" }, more, close));
  const showMore = () => {
    const next = others.slice(list.children.length, list.children.length + OTHERS_AT_ONCE);
    list.append(...next.map((other) => otherCard(other, context, () => {
      dialog.close();
      choose(other);
    })));
    more.hidden = list.children.length >= others.length;
  };
  more.addEventListener("click", showMore);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  showMore();
  dialog.showModal();
}

function otherCard({ person, similarity }, context, onclick) {
  const text = similarity === null ? "not compared" : `similarity ${decimal(similarity)}`;
  const button = element("button", { type: "button", className: "quiet", onclick }, "Same person");
  button.setAttribute("aria-label", `Same person: ${person.name}`);
  const figure = personFigure(person, context.severalVideos, text);
  figure.append(element("div", { className: "marking" }, button));
  return element("div", { className: "card" }, figure);
}
