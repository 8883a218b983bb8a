"use strict";
/* What the reviewer decides of pairs: buttons on their cards, keys, undo, and where it is kept.
 *
 * Served by `streamproc review`, decisions go to its decisions.jsonl or to the stream, and other
 * pages show them at once. From disk they stay in this browser until they are saved as a file. What follows from them
 * is what `streamproc/gallery/identities.py` says. */

const DECISION_WORDS = { same: "Same person", different: "Different people", unsure: "Not sure" };
const FILTERS = {
  undecided: (facts) => facts.verdict === null && !facts.inConflict,
  decided: (facts) => facts.verdict === "same" || facts.verdict === "different",
  unsure: (facts) => facts.verdict === "unsure",
  conflict: (facts) => facts.inConflict,
  all: () => true,
};

function keyOfPair(a, b) {
  return a < b ? `${a}\n${b}` : `${b}\n${a}`;
}

function isBefore(one, other) {
  const [first, second] = [Date.parse(one.decided_at), Date.parse(other.decided_at)];
  return first < second || (first === second && one.decision_id < other.decision_id);
}

/** The decisions that nobody undid, the earliest first. An undo of something later does nothing. */
function standingDecisions(decisions) {
  const latestFirst = [...decisions].sort((one, other) => (isBefore(one, other) ? 1 : -1));
  const byId = new Map(latestFirst.map((decision) => [decision.decision_id, decision]));
  // Of two with one id the earlier holds.
  const once = latestFirst.filter((one) => byId.get(one.decision_id) === one);
  const undone = new Set();
  for (const decision of once) {
    if (decision.kind !== "undo" || undone.has(decision.decision_id)) continue;
    const target = byId.get(decision.undoes);
    if (target && isBefore(target, decision)) undone.add(target.decision_id);
  }
  return once.filter((decision) => !undone.has(decision.decision_id)).reverse();
}

function* pairsSaid(decision) {
  if (decision.kind === "pair") yield [...decision.person_keys, decision.verdict];
  if (decision.kind === "group") {
    const keys = decision.person_keys;
    for (let i = 0; i < keys.length; i += 1) {
      for (let j = i + 1; j < keys.length; j += 1) yield [keys[i], keys[j], "same"];
    }
  }
  if (decision.kind === "apart") {
    for (const a of decision.person_keys) {
      for (const b of decision.other_keys) yield [a, b, "different"];
    }
  }
}

/** What is said of each person by decisions: whether their tracks were verified to be one person,
 * and no others, and whether they are wanted (null where nobody said). `root` names the identity of
 * a track. By person key; as `Identities` in gallery/identities.py says. */
function peopleOf(decisions, keys, root) {
  const verified = new Set();
  const wanted = new Map();
  for (const decision of standingDecisions(decisions)) {
    if (decision.kind === "verified") verified.add(listOf(decision.person_keys));
    if (decision.kind !== "selected") continue;
    for (const key of decision.person_keys) wanted.set(key, decision.wanted);
  }
  const members = new Map();
  for (const key of keys) {
    const name = root(key);
    if (!members.has(name)) members.set(name, []);
    members.get(name).push(key);
  }
  const people = new Map();
  for (const own of members.values()) {
    const said = own.filter((key) => wanted.has(key)).map((key) => wanted.get(key));
    const isWanted = said.length ? said.includes(true) : null;
    const person = { keys: own, isVerified: verified.has(listOf(own)), isWanted };
    for (const key of own) people.set(key, person);
  }
  return people;
}

/** The tracker's id in a person key. */
function numberOf(key) {
  return key.slice(key.lastIndexOf("/") + 1);
}

function listOf(keys) {
  return [...new Set(keys)].sort().join("\n");
}

/** What follows from decisions and vetoes: call it with two person keys, or its `root` with one. */
function consequencesOf(decisions, vetoes) {
  const said = new Map();
  for (const decision of standingDecisions(decisions)) {
    for (const [a, b, verdict] of pairsSaid(decision)) said.set(keyOfPair(a, b), verdict);
  }
  const parents = new Map();
  const wholeRoot = (key) => {
    let root = key;
    while (parents.has(root)) root = parents.get(root);
    return root;
  };
  const pairs = [...said].map(([key, verdict]) => [...key.split("\n"), verdict]);
  for (const [a, b, verdict] of pairs) {
    const [one, other] = [wholeRoot(a), wholeRoot(b)];
    if (verdict === "same" && one !== other) parents.set(one < other ? other : one,
      one < other ? one : other);
  }
  const different = pairs.filter(([, , verdict]) => verdict === "different");
  const inConflict = new Set();
  for (const [a, b] of [...different, ...vetoes]) {
    if (wholeRoot(a) === wholeRoot(b)) inConflict.add(wholeRoot(a));
  }
  const root = (key) => (inConflict.has(wholeRoot(key)) ? key : wholeRoot(key));
  const apart = new Set(different.map(([a, b]) => keyOfPair(root(a), root(b))));
  const factsOfPair = (a, b) => {
    const direct = said.get(keyOfPair(a, b));
    let verdict = direct || null;
    if (!direct && root(a) === root(b)) verdict = "same";
    if (!direct && apart.has(keyOfPair(root(a), root(b)))) verdict = "different";
    const isOne = wholeRoot(a) === wholeRoot(b);
    return { verdict, isDirect: Boolean(direct), inConflict: isOne && inConflict.has(wholeRoot(a)) };
  };
  return Object.assign(factsOfPair, { root });
}

/** Where decisions are kept: the server that `streamproc review` runs. The page's own address says
 * of which gallery, where the server has several. */
class ServedDecisions {
  constructor({ decisions, place }) {
    this.decisions = decisions;
    this.place = place;
    this.isSaved = true;
  }

  static async open() {
    return new ServedDecisions(await ServedDecisions.fetched());
  }

  static async fetched() {
    const response = await fetch(`/api/decisions${location.search}`);
    if (!response.ok) throw new Error(response.statusText);
    return response.json();
  }

  async add(decision) {
    const response = await fetch(`/api/decisions${location.search}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(decision),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    if (!this.decisions.some((known) => known.decision_id === answer.decision_id)) {
      this.decisions.push(answer);
    }
  }

  /** Call `changed` whenever another page decided something. */
  follow(changed) {
    this.changes = new EventSource(`/api/changes${location.search}`);
    this.changes.addEventListener("message", async (event) => {
      if (Number(event.data) !== this.decisions.length && await this.readAgain()) changed();
    });
  }

  /** Ask for all decisions; returns whether they came. */
  async readAgain() {
    try {
      this.decisions = (await ServedDecisions.fetched()).decisions;
      return true;
    } catch {
      return false; // the server is away: the browser asks for changes again
    }
  }
}

/** Where decisions are kept without a server: in this browser, until they are saved.
 *
 * `run` stands for the tracks: of other tracks the same key may be somebody else. */
class OwnDecisions {
  constructor(gallery, run) {
    this.gallery = gallery;
    this.name = `streamproc decisions ${gallery} ${run}`;
    this.place = "Decisions stay in this browser until you save them as decisions.jsonl beside "
      + "run.json; `streamproc review` keeps them there by itself.";
    this.isSaved = false;
    this.decisions = [];
    this.decisions = this.kept();
  }

  /** All decisions: those that are kept, also by other windows, and those that could not be. */
  kept() {
    let found = null;
    try {
      found = JSON.parse(localStorage.getItem(this.name));
    } catch {
      // A browser may refuse to keep anything for a page from disk: it can still be saved.
    }
    const decisions = Array.isArray(found) ? found : [];
    const ids = new Set(decisions.map((decision) => decision.decision_id));
    return [...decisions, ...this.decisions.filter((one) => !ids.has(one.decision_id))];
  }

  async add(decision) {
    const random = crypto.getRandomValues(new Uint8Array(16));
    const id = [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    this.decisions = this.kept();
    // After the latest one, whatever the clock says: what is decided last holds.
    const times = this.decisions.map(({ decided_at: time }) => Date.parse(time) + 1);
    this.decisions.push({
      schema_version: 1,
      decision_id: id,
      gallery_id: this.gallery,
      decided_at: new Date(times.reduce((a, b) => Math.max(a, b), Date.now())).toISOString(),
      ...decision,
    });
    try {
      localStorage.setItem(this.name, JSON.stringify(this.decisions));
    } catch {
      // See `kept`.
    }
  }

  /** Call `changed` whenever another window decided something. */
  follow(changed) {
    window.addEventListener("storage", (event) => {
      if (event.key !== this.name) return;
      this.decisions = this.kept();
      changed();
    });
  }

  save() {
    const lines = this.decisions.map((decision) => `${JSON.stringify(decision)}\n`);
    const url = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    element("a", { href: url, download: "decisions.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
}

/** The review of one page. `keys` are of all persons, `vetoes` are pairs of them; `onFilter` shows
 * the list anew, `onSameAs` lets somebody be chosen for a person. */
class Review {
  constructor({ gallery, run, keys, vetoes, onFilter, onSameAs, isLive }) {
    this.gallery = gallery;
    this.isLive = isLive;
    this.keys = keys;
    this.vetoes = vetoes;
    this.onFilter = onFilter;
    this.onSameAs = onSameAs;
    this.filter = "all";
    this.cards = new Set();
    this.lastKept = Promise.resolve();
    this.store = new OwnDecisions(gallery, run);
    this.conclude();
  }

  conclude() {
    this.facts = consequencesOf(this.store.decisions, this.vetoes);
    this.people = peopleOf(this.store.decisions, this.keys, this.facts.root);
  }

  /** Find out where decisions are kept, then show the bar and what was decided. */
  async start(bar) {
    if (location.protocol !== "file:") {
      try {
        this.store = await ServedDecisions.open();
      } catch (error) {
        if (this.isLive) throw error;
        // Some other server shows the page: decisions stay in the browser.
      }
    }
    this.fillBar(bar);
    this.store.follow(() => this.refresh());
    document.addEventListener("keydown", (event) => this.onKey(event));
    this.refresh();
  }

  fillBar(bar) {
    const filter = element("select", { id: "review-filter" },
      ...["all", "undecided", "decided", "unsure", "conflict"].map(
        (name) => element("option", { value: name }, name)));
    filter.addEventListener("change", () => {
      this.filter = filter.value;
      this.onFilter();
    });
    this.count = element("p", { role: "status" });
    this.trouble = element("p", { role: "alert", className: "trouble" });
    this.undoButton = this.button("Undo", "z", () => this.undo());
    const buttons = [this.undoButton, this.button("Keys", "?", () => this.help.showModal())];
    if (!this.store.isSaved) {
      buttons.push(this.button("Save decisions.jsonl", "", () => this.store.save()));
    }
    bar.append(element("label", {}, "Show", filter), ...buttons, this.count, this.trouble);
    bar.after(element("p", { className: "hint" }, this.store.place), this.helpDialog());
    bar.hidden = false;
  }

  button(text, key, onclick) {
    const shown = key ? element("kbd", {}, key) : null;
    return element("button", { type: "button", onclick }, text, shown);
  }

  helpDialog() {
    const keys = [
      ["s", "same person; of a group, all one person"], ["d", "different people"], ["u", "not sure"], ["z", "undo"],
      ["w", "wanted: the person who has the focus, or all on the card"], ["n", "not wanted"],
      ["a", "same as …: choose who else the person is who has the focus"],
      ["v", "verified: checked that these tracks, and no others, are this person"],
      ["j", "next pair, without deciding"], ["k", "pair before"], ["?", "this list"],
    ];
    const rows = keys.map(([key, meaning]) => element("div", {},
      element("dt", {}, element("kbd", {}, key)), element("dd", {}, meaning)));
    const close = element("button", { type: "button" }, "Close");
    this.help = element("dialog", { className: "keys", "aria-label": "Keys" },
      element("dl", {}, ...rows), close);
    close.addEventListener("click", () => this.help.close());
    return this.help;
  }

  /** Whether the filter lets a pair or a group through. */
  isListed(keys) {
    return FILTERS[this.filter](this.factsOfAll(keys));
  }

  /** What is decided of tracks that may be one person: of a pair, or of all pairs of a group. */
  factsOfAll(keys) {
    const all = [];
    for (let i = 0; i < keys.length; i += 1) {
      for (let j = i + 1; j < keys.length; j += 1) all.push(this.facts(keys[i], keys[j]));
    }
    const isOne = (verdict) => all.every((facts) => facts.verdict === verdict);
    return {
      verdict: ["same", "different", "unsure"].find(isOne) || null,
      isDirect: all.some((facts) => facts.isDirect),
      inConflict: all.some((facts) => facts.inConflict),
    };
  }

  /** Add the buttons to a pair's card. */
  attach(card, a, b, pair) {
    const shown = {};
    for (const name of ["similarity", "probability", "candidate_id"]) {
      if (pair && pair[name] !== undefined) shown[name] = pair[name];
    }
    this.addButtons({
      card,
      keys: () => [a, b],
      words: DECISION_WORDS,
      decision: (verdict) => ({ kind: "pair", person_keys: [a, b], verdict, shown }),
    });
  }

  /** Add to a group's card that all are one person, but those who are left out. */
  attachGroup(card, figures) {
    const leftOut = new Set();
    for (const [key, figure] of figures) figure.append(this.leaveOutButton(card, key, leftOut));
    const keys = () => [...figures.keys()].filter((key) => !leftOut.has(key));
    this.addButtons({
      card,
      keys,
      words: { same: "All one person" },
      decision: () => (keys().length > 1 ? { kind: "group", person_keys: keys() } : null),
    });
  }

  leaveOutButton(card, key, leftOut) {
    const button = element("button", { type: "button", className: "quiet" }, "Leave out");
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      if (!leftOut.delete(key)) leftOut.add(key);
      button.setAttribute("aria-pressed", String(leftOut.has(key)));
      button.closest("figure").classList.toggle("left-out", leftOut.has(key));
      this.mark(this.entryOf(card));
    });
    return button;
  }

  addButtons({ card, keys, words, decision }) {
    const word = element("span", { className: "said", role: "status" });
    const buttons = Object.entries(words).map(([verdict, text]) => {
      const button = element("button", { type: "button" }, text);
      button.dataset.verdict = verdict;
      button.addEventListener("click", () => this.decide(card, verdict));
      return button;
    });
    card.append(element("footer", { className: "decide" }, ...buttons, word));
    card.tabIndex = -1;
    const entry = { card, keys, words, decision, word, buttons };
    this.cards.add(entry);
    this.mark(entry);
  }

  /** Take over who is there and has a veto now, and mark all cards anew. */
  update(keys, vetoes) {
    this.keys = keys;
    this.vetoes = vetoes;
    this.refresh();
  }

  entryOf(card) {
    return [...this.cards].find((entry) => entry.card === card);
  }

  mark({ card, keys, word, buttons }) {
    const { verdict, isDirect, inConflict } = this.factsOfAll(keys());
    card.classList.toggle("is-decided", verdict === "same" || verdict === "different");
    card.classList.toggle("in-conflict", inConflict);
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
    }
    let text = verdict && !isDirect ? `${DECISION_WORDS[verdict]}, by other decisions.` : "";
    if (inConflict) text = "In conflict: these were joined with somebody they cannot be.";
    word.textContent = text;
    this.markPeople(card);
  }

  /* Who is wanted, and whose tracks were verified. */

  /** Add the buttons to one person's figure. */
  attachPerson(figure) {
    const { key } = figure.dataset;
    const name = figure.querySelector(".name").textContent;
    const marks = {
      wanted: ["Wanted", () => this.select([key], true)],
      unwanted: ["Not wanted", () => this.select([key], false)],
      verified: ["Verified", () => this.verify([key])],
    };
    const buttons = Object.entries(marks).map(([mark, [text, onclick]]) => {
      const button = element("button", { type: "button", className: "quiet", onclick }, text);
      button.setAttribute("aria-label", `${text}: ${name}`);
      button.dataset.mark = mark;
      return button;
    });
    const sameAs = element("button", {
      type: "button", className: "quiet", onclick: () => this.onSameAs(key),
    }, "Same as …");
    sameAs.setAttribute("aria-label", `Same as …: ${name}`);
    figure.append(element("div", { className: "marking" }, ...buttons, sameAs));
  }

  /** Show on the figures below an element what is said of their persons. */
  markPeople(below) {
    for (const figure of below.querySelectorAll("figure[data-key]")) {
      const person = this.people.get(figure.dataset.key);
      if (!person) continue;
      const { isWanted, isVerified } = person;
      const isMarked = { wanted: isWanted === true, unwanted: isWanted === false };
      isMarked.verified = isVerified;
      for (const button of figure.querySelectorAll("[data-mark]")) {
        button.setAttribute("aria-pressed", String(isMarked[button.dataset.mark]));
      }
      const words = { wanted: "Wanted", unwanted: "Not wanted", verified: "Verified" };
      const said = Object.keys(words).filter((mark) => isMarked[mark]).map((mark) => words[mark]);
      const others = person.keys.filter((key) => key !== figure.dataset.key);
      if (others.length) said.push(`Same as ${others.map(numberOf).join(", ")}`);
      figure.querySelector(".marks").textContent = said.join(" · ");
    }
  }

  /** Each once, the people of some tracks. */
  peopleAt(keys) {
    return [...new Set(keys.map((key) => this.people.get(key)).filter(Boolean))];
  }

  /** Say of the people of some tracks whether they are wanted. */
  select(keys, wanted) {
    return this.keep(() => {
      const others = this.peopleAt(keys).filter((person) => person.isWanted !== wanted);
      const all = others.flatMap((person) => person.keys);
      return all.length ? { kind: "selected", person_keys: all, wanted } : null;
    });
  }

  /** Say that somebody has checked these people's tracks; of those who are verified already, that
   * this holds no longer. */
  async verify(keys) {
    await this.lastKept; // who is one person may depend on what is under way
    const people = this.peopleAt(keys);
    const isUndone = people.every((person) => person.isVerified);
    for (const { keys: own } of people) {
      if (isUndone) await this.undoAll(this.verificationsOf(own));
      else await this.keep(() => this.verificationOf(own));
    }
  }

  verificationOf(keys) {
    const isVerified = this.verificationsOf(keys).length > 0;
    return isVerified ? null : { kind: "verified", person_keys: keys };
  }

  verificationsOf(keys) {
    return standingDecisions(this.store.decisions).filter(
      ({ kind, person_keys: own }) => kind === "verified" && listOf(own) === listOf(keys));
  }

  async undoAll(decisions) {
    for (const { decision_id: undoes } of decisions) {
      await this.keep(() => ({ kind: "undo", undoes }));
    }
  }

  /** The tracks that a key is about: of the person who has the focus, or of all on the card. */
  keysAt(place) {
    const figure = place.closest("figure[data-key]");
    if (figure) return [figure.dataset.key];
    const entry = this.entryOf(place.closest(".pair"));
    return entry ? entry.keys() : [];
  }

  refresh() {
    this.conclude();
    this.markPeople(document);
    for (const entry of [...this.cards]) {
      if (entry.card.isConnected) this.mark(entry);
      else this.cards.delete(entry);
    }
    const standing = standingDecisions(this.store.decisions);
    const count = standing.filter((decision) => decision.kind !== "undo").length;
    this.count.textContent = plural(count, "decision", "decisions");
    this.undoButton.disabled = count === 0;
    document.dispatchEvent(new Event("decided"));
  }

  /** Keep what `makeDecision` returns, which may be nothing, after all that is under way. */
  keep(makeDecision) {
    this.lastKept = this.lastKept.then(() => this.keepNow(makeDecision()));
    return this.lastKept;
  }

  async keepNow(decision) {
    this.trouble.textContent = "";
    if (!decision) return true;
    try {
      await this.store.add(decision);
    } catch (error) {
      this.trouble.textContent = `The decision was not kept: ${error.message}`;
      return false;
    }
    this.refresh();
    return true;
  }

  async decide(card, verdict) {
    const entry = this.entryOf(card);
    // The next card comes at once: the next key must not fall on this one.
    if (card.contains(document.activeElement)) this.step(card, 1);
    const kept = await this.keep(() => entry.decision(verdict));
    if (!kept) card.focus();
  }

  undo() {
    return this.keep(() => {
      const made = standingDecisions(this.store.decisions).filter(({ kind }) => kind !== "undo");
      return made.length ? { kind: "undo", undoes: made[made.length - 1].decision_id } : null;
    });
  }

  listed() {
    return [...document.querySelectorAll("#groups > .pair, #candidates > .pair")];
  }

  step(card, by) {
    const place = card ? this.listed().indexOf(card) + by : 0;
    const more = document.querySelector("#candidates-more button");
    if (place === this.listed().length && more) more.click();
    const next = this.listed()[place];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  onKey(event) {
    const isTyping = event.target.closest("input, select, textarea, dialog");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    const card = document.activeElement.closest(".pair");
    const verdict = { s: "same", d: "different", u: "unsure" }[event.key];
    const entry = verdict && this.entryOf(card);
    const keys = this.keysAt(document.activeElement);
    if (entry && verdict in entry.words) this.decide(card, verdict);
    else if (keys.length === 1 && event.key === "a") this.onSameAs(keys[0]);
    else if (keys.length && event.key === "w") this.select(keys, true);
    else if (keys.length && event.key === "n") this.select(keys, false);
    else if (keys.length && event.key === "v") this.verify(keys);
    else if (event.key === "j") this.step(card, 1);
    else if (event.key === "k") this.step(card, -1);
    else if (event.key === "z") this.undo();
    else if (event.key === "?") this.help.showModal();
    else return;
    event.preventDefault();
  }
}
