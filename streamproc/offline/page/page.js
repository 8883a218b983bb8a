"use strict";
/* Reads the data inside the page and fills its sections. */

const PAIRS_AT_ONCE = 12;
const MAX_CROSSES = 400; // more would hide the colours beneath
const MANY_PERSONS = 300; // what shows all of more is filled once somebody comes near it

function byId(id) {
  return document.getElementById(id);
}

/** When each video's last person was last seen, by the video's source. */
function videoLengths() {
  const seconds = new Map();
  for (const person of persons) {
    const last = seconds.get(person.source) || 0;
    seconds.set(person.source, Math.max(last, person.last_seconds));
  }
  return seconds;
}

// What the page shows. Persons are known by their place in the list; rows of the matrix are those
// of `embedded`. `known` says what is listed of two persons, `groupOf` in whose card one is.
let [data, persons, embedded, rows] = [null, [], [], null];
let [rowOf, placeOf, known, groups, groupOf] = [];
const context = { severalVideos: false, videoSeconds: new Map() };

/** Take the data of the page, or of the live page newer ones. */
function take(newer) {
  data = newer;
  ({ persons, embedded } = data);
  nameAll(persons);
  if (data.similarities) rows = unpackSimilarities(data.similarities, embedded.length);
  if (!embedded.length) rows = null;
  rowOf = new Map(embedded.map((place, row) => [place, row]));
  placeOf = new Map(persons.map((person, place) => [person.person_key, place]));
  context.severalVideos = new Set(persons.map((person) => person.source)).size > 1;
  context.videoSeconds = videoLengths();
  known = new Map();
  for (const pair of data.candidates) {
    known.set(placesKey(...placesOf(pair)), { status: "candidate", pair });
  }
  for (const pair of data.vetoed) {
    known.set(placesKey(...placesOf(pair)), { status: "vetoed", pair });
  }
  // Groups of three and more have a card each, with their pairs inside. Of two it is a pair.
  groups = data.groups.filter((group) => group.person_keys.length > 2);
  groupOf = new Map(groups.flatMap(
    (group) => group.person_keys.map((key) => [placeOf.get(key), group])));
}

/** The places of a pair's two persons, the smaller first. A pair is a candidate as on the wire, or
 * a vetoed pair in the same form. */
function placesOf(pair) {
  return pair.persons.map((person) => placeOf.get(person.person_key)).sort((a, b) => a - b);
}

function placesKey(a, b) {
  return a < b ? `${a} ${b}` : `${b} ${a}`;
}

/** What is known of any two persons: a status as in `pairCard`, and the pair if compared. */
function factsOf(a, b) {
  const listed = known.get(placesKey(a, b));
  if (listed) return listed;
  if (rows === null || !rowOf.has(a) || !rowOf.has(b)) return { status: "none", pair: null };
  const similarity = rows[rowOf.get(a)][rowOf.get(b)];
  return { status: similarity > data.threshold ? "above" : "below", pair: { similarity } };
}

function vetoes() {
  return data.seen_apart.flatMap((others, place) => others.map(
    (other) => [persons[place].person_key, persons[other].person_key]));
}

/** Let the reviewer choose who else a person is, and decide so. */
function chooseSame(key) {
  const place = placeOf.get(key);
  const choose = ({ person, similarity }) => review.keep(() => ({
    kind: "pair",
    person_keys: [key, person.person_key],
    verdict: "same",
    shown: similarity === null ? {} : { similarity },
  }));
  openChooser({ person: persons[place], others: likestFirst(place), context, choose });
}

/** Who a person may also be, the most similar first, then the nearest in time. */
function likestFirst(place) {
  const own = persons[place];
  const apart = new Set(vetoes().map(([a, b]) => keyOfPair(a, b)));
  const others = persons.map((person, other) => {
    const { pair } = factsOf(place, other);
    const after = Math.max(person.first_seconds - own.last_seconds,
      own.first_seconds - person.last_seconds);
    return { person, similarity: pair ? pair.similarity : null, after };
  });
  const isPossible = ({ person: { person_key: key } }) => key !== own.person_key
    && !apart.has(keyOfPair(key, own.person_key))
    && review.facts(key, own.person_key).verdict !== "same";
  return others.filter(isPossible).sort((a, b) => (b.similarity ?? -2) - (a.similarity ?? -2)
    || a.after - b.after);
}

function keysOfAll() {
  return persons.map((person) => person.person_key);
}

take(JSON.parse(byId("data").textContent));

const review = new Review({
  gallery: data.gallery,
  run: data.run,
  isLive: Boolean(data.live),
  keys: keysOfAll(),
  onSameAs: chooseSame,
  vetoes: vetoes(),
  onFilter: () => {
    byId("groups").replaceChildren();
    byId("candidates").replaceChildren();
    fillGroups();
    showMoreCandidates();
  },
});

function cardOf(a, b) {
  const facts = factsOf(a, b);
  const card = pairCard({ a: persons[a], b: persons[b], ...facts, context });
  if (facts.status !== "vetoed") {
    review.attach(card, persons[a].person_key, persons[b].person_key, facts.pair);
  }
  review.markPeople(card);
  return card;
}

/** What a card shows: where it is another text, the card is made anew. */
const signatures = new WeakMap();

function signatureOf({ person_keys: keys, persons: pair, ...figures }) {
  const own = (keys || pair.map((person) => person.person_key)).map(
    (key) => persons[placeOf.get(key)]);
  return JSON.stringify([figures, own]);
}

function candidateCard(candidate) {
  const card = cardOf(...placesOf(candidate));
  card.dataset.candidate = candidate.candidate_id;
  signatures.set(card, signatureOf(candidate));
  return card;
}

/** The candidates that the filter lets through. */
function listedCandidates() {
  return data.candidates.filter((candidate) => {
    const keys = candidate.persons.map((person) => person.person_key);
    return !groupOfPair(candidate) && review.isListed(keys);
  });
}

/** The group in whose card a candidate is, undefined where it has a card of its own. */
function groupOfPair(candidate) {
  const [one, other] = placesOf(candidate).map((place) => groupOf.get(place));
  return one === other ? one : undefined;
}

function fillGroups() {
  const shown = groups.filter((group) => review.isListed(group.person_keys));
  byId("groups").append(...shown.map(cardOfGroup));
}

function cardOfGroup(group) {
  const pairs = data.candidates.filter((candidate) => groupOfPair(candidate) === group);
  const members = group.person_keys.map((key) => persons[placeOf.get(key)])
    .sort((a, b) => a.first_seconds - b.first_seconds);
  const figures = new Map(members.map(
    (person) => [person.person_key, personFigure(person, context.severalVideos)]));
  const card = groupCard({
    group, members, figures, pairCount: pairs.length, pairCards: () => pairs.map(candidateCard),
  });
  review.attachGroup(card, figures);
  card.dataset.group = group.group_id;
  signatures.set(card, signatureOf(group));
  return card;
}

function emptyState(title, text) {
  return element("p", { className: "empty" }, element("strong", {}, title), text);
}

/** "3 less similar pairs are in similarity_matrix.json." for pairs that the page leaves out. */
function leftOut(count) {
  if (data.live) return `${count.toLocaleString("en")} less likely pairs are not listed.`;
  return `${count.toLocaleString("en")} less similar pairs are in similarity_matrix.json.`;
}

function fact(name, value, className) {
  const entry = element("div", { className: className || "" },
    element("dt", {}, name), element("dd", {}, value));
  byId("facts").append(entry);
}

function fillFacts() {
  byId("facts").replaceChildren();
  fact("Gallery", data.gallery, "wide");
  const videos = [...new Set(persons.map((person) => person.video))];
  if (videos.length) {
    const names = videos.length > 3 ? plural(videos.length, "video", "videos") : videos.join(", ");
    fact(videos.length === 1 ? "Video" : "Videos", names, "wide");
  }
  fact("Persons", persons.length.toLocaleString("en"));
  const count = data.candidate_count.toLocaleString("en");
  fact("Possible duplicates", data.has_similarity ? count : "not looked for");
  fact("Threshold", data.threshold.toFixed(2));
  if (data.model) fact("Model", modelName(data.model), "model wide");
  const made = data.timestamp.replace("T", " ").slice(0, 16);
  byId("numbers-threshold").textContent = data.threshold.toFixed(2);
  byId("made").textContent = data.live ? `Live; the last change came ${made} UTC.`
    : `Made ${made} UTC. The same numbers are in similarity_matrix.json and run.json.`;
  const notices = data.notices.map((notice) => element("p", { className: "notice" }, notice));
  byId("notices").replaceChildren(...notices);
}

function modelName(model) {
  const sha256 = String(model.weights_sha256 || "");
  const name = String(model.name || model.architecture || "unnamed");
  const details = [];
  if (model.architecture && model.architecture !== model.name) details.push(model.architecture);
  if (sha256) details.push(`sha256 ${sha256.slice(0, 12)}`);
  return element("span", { title: sha256 },
    element("span", {}, name), element("small", {}, details.join(" · ")));
}

function nothingListed() {
  if (data.has_similarity && embedded.length > 1) {
    const text = `No pair without a veto is above ${data.threshold.toFixed(2)} and likely enough.`;
    return emptyState("No possible duplicates", text);
  }
  return emptyState("Nothing was compared", data.has_similarity
    ? "It takes two persons to compare."
    : "Similarity was skipped; the notice above says why.");
}

function fillCandidates() {
  if (!data.candidates.length && !data.live) {
    byId("candidates").before(nothingListed());
    if (!persons.length) return;
  } else {
    fillLead();
  }
  showMoreCandidates();
  return review.start(byId("review"));
}

function fillLead() {
  const lead = byId("duplicates-lead");
  if (!data.candidates.length) {
    lead.textContent = "No pair so far. What is found appears here by itself.";
    return;
  }
  const count = plural(data.candidate_count, "pair is", "pairs are");
  const them = data.candidate_count === 1 ? "it" : "them";
  const first = data.candidates[0].probability === undefined ? "most similar" : "likeliest";
  lead.textContent = `${count} above ${data.threshold.toFixed(2)} `
    + `and nothing rules ${them} out. The ${first} first.`;
}

/** The candidates that the filter lets through, and that have no card yet. */
function waitingCandidates() {
  const shown = new Set([...byId("candidates").children].map((card) => card.dataset.candidate));
  return listedCandidates().filter((pair) => !shown.has(pair.candidate_id));
}

function showMoreCandidates() {
  const list = byId("candidates");
  const from = list.children.length;
  list.append(...waitingCandidates().slice(0, PAIRS_AT_ONCE).map(candidateCard));
  fillMore();
  if (from && list.children[from]) {
    list.children[from].querySelector("h3").scrollIntoView({ block: "nearest" });
  }
}

function fillMore() {
  const more = byId("candidates-more");
  const left = waitingCandidates().length;
  const beyond = data.candidate_count - data.candidates.length;
  more.replaceChildren();
  if (left) {
    const text = `Show ${Math.min(left, PAIRS_AT_ONCE)} more of ${left.toLocaleString("en")}`;
    more.append(element("button", { type: "button", onclick: showMoreCandidates }, text));
  } else if (beyond) {
    more.append(leftOut(beyond));
  }
}

function fillVetoed() {
  const [details, list] = [byId("vetoed"), byId("vetoed-list")];
  const count = plural(data.vetoed_count, "pair", "pairs");
  details.hidden = !data.vetoed_count;
  byId("vetoed-summary").textContent =
    `${count} above ${data.threshold.toFixed(2)} ruled out by a veto`;
  list.replaceChildren();
  details.ontoggle = () => {
    if (list.children.length || !details.open) return;
    list.append(...data.vetoed.map(vetoedRow));
    const beyond = data.vetoed_count - data.vetoed.length;
    if (beyond) list.append(element("li", { className: "rest" }, leftOut(beyond)));
  };
  details.ontoggle();
}

/** The tracks that were taken apart; the live page does not know of them. */
function fillSuspects() {
  byId("suspects").hidden = !data.suspects.length;
  const count = plural(data.suspect_count, "track", "tracks");
  byId("suspects-lead").textContent = `${count} seemed to go from one person to another, as where a `
    + "tracker mixes two up. Each part counts as a person of its own. Elsewhere on this page both "
    + "show the pictures of the whole track, those of the first part first.";
  byId("suspects-list").append(...data.suspects.map((suspect) => {
    const parts = suspect.person_keys.map((key) => persons[placeOf.get(key)]);
    return suspectCard({ parts, suspect, context });
  }));
}

function vetoedRow(pair) {
  const [a, b] = placesOf(pair);
  const names = `${persons[a].name} and ${persons[b].name}`;
  const button = rows && element("button", {
    type: "button", onclick: () => compare(a, b, true), "aria-label": `Compare ${names}`,
  }, "Compare");
  return element("li", {},
    element("span", {}, names), element("b", {}, decimal(pair.similarity)), button);
}

function compare(a, b, show) {
  byId("compare-a").value = a;
  byId("compare-b").value = b;
  byId("compare-a").dataset.key = persons[a].person_key;
  byId("compare-b").dataset.key = persons[b].person_key;
  byId("compare-result").replaceChildren(a === b
    ? element("p", { className: "why" }, "Choose two different persons.")
    : cardOf(a, b));
  if (!show) return;
  byId("compare").focus({ preventScroll: true });
  byId("compare").scrollIntoView({ block: "nearest" });
}

function noHeatmap() {
  let text = "Similarity was skipped; the notice above says why.";
  if (data.has_similarity) {
    text = embedded.length < 2
      ? "It takes two persons to compare."
      : `${embedded.length.toLocaleString("en")} persons are too many to draw here; `
        + "all similarities are in similarity_matrix.npy.";
  }
  return emptyState("No heatmap", text);
}

/** The rows of vetoed pairs to cross out; none where not all are known, or too many to see. */
function crosses() {
  if (data.vetoed.length < data.vetoed_count || data.vetoed.length > MAX_CROSSES) return [];
  return data.vetoed.map((pair) => placesOf(pair).map((place) => rowOf.get(place)));
}

let drawAgain = null;

function fillHeatmap() {
  const lead = byId("similarity-lead");
  byId("matrix").hidden = rows === null;
  if (rows === null) {
    if (data.live) {
      lead.textContent = embedded.length || persons.length <= 1000
        ? "Drawn once a video with two persons is done."
        : "The persons are too many to draw here.";
      return;
    }
    lead.remove();
    byId("similarity").append(noHeatmap());
    return;
  }
  lead.textContent = "Warm cells are above the threshold. "
    + "Choose a cell, or two persons beside it, to see them together.";
  const labels = embedded.map((place) => persons[place].name);
  const vetoed = crosses();
  byId("heatmap").setAttribute("aria-label",
    `Heatmap of the cosine similarities of ${labels.length} persons; `
    + "the two lists beside it show the same by choice of persons.");
  byId("heatmap-hint").textContent =
    vetoed.length ? "× ruled out: seen apart in the same frames." : "";
  fillComparison();
  const onPick = (i, j) => compare(embedded[i], embedded[j], true);
  const shown = { rows, labels, threshold: data.threshold, vetoed, onPick };
  if (drawAgain) drawAgain(shown);
  else drawAgain = drawHeatmap(byId("heatmap"), shown);
}

/** Fill the lists of persons to compare; those who were chosen stay so. */
function fillComparison() {
  const lists = [byId("compare-a"), byId("compare-b")];
  const chosen = lists.map((list) => list.dataset.key);
  for (const list of lists) {
    list.replaceChildren(...embedded.map(
      (place) => element("option", { value: place }, persons[place].name)));
    list.onchange = () => compare(Number(lists[0].value), Number(lists[1].value), false);
  }
  const pairs = [...data.candidates, ...data.vetoed];
  const kept = chosen.map((key) => placeOf.get(key));
  const first = pairs.length ? placesOf(pairs[0]) : embedded;
  const [a, b] = kept.every((place) => rowOf.has(place)) ? kept : first;
  compare(a, b, false);
}

const SORTS = {
  given: (a, b) => a.place - b.place,
  time: (a, b) => a.person.first_seconds - b.person.first_seconds || a.place - b.place,
  frames: (a, b) => b.person.frames - a.person.frames || a.place - b.place,
  quality: (a, b) => b.person.quality - a.person.quality || a.place - b.place,
};

function personCard(person, place) {
  const quality = `best crop ${person.quality.toFixed(2)}`;
  const figure = personFigure(person, context.severalVideos, quality);
  review.attachPerson(figure);
  return {
    person,
    place,
    text: `${person.label} ${person.video}`.toLowerCase(),
    card: element("div", { className: "card" }, figure),
  };
}

function fillPersons() {
  const grid = byId("persons-grid");
  if (!persons.length && !data.live) {
    const text = "No track was long enough; run.json says what was left out.";
    grid.replaceWith(emptyState("No persons", text));
    return;
  }
  byId("persons-tools").hidden = persons.length < 2;
  const cards = persons.map(personCard);
  const count = plural(persons.length, "person", "persons");
  const show = () => {
    const wanted = byId("persons-find").value.trim().toLowerCase();
    const shown = cards.filter(({ text }) => text.includes(wanted));
    shown.sort(SORTS[byId("persons-sort").value]);
    grid.replaceChildren(...shown.map(({ card }) => card));
    review.markPeople(grid);
    byId("persons-count").textContent = wanted ? `${shown.length} of ${count}` : count;
  };
  byId("persons-find").oninput = show;
  byId("persons-sort").onchange = show;
  show();
}

function wireMotion() {
  const button = byId("motion");
  const label = () => {
    button.textContent = motion.paused ? "Play" : "Pause";
    button.setAttribute("aria-label", `${button.textContent} the animations`);
  };
  button.hidden = !persons.some((person) => person.webp);
  button.onclick = () => {
    motion.paused = !motion.paused;
    document.querySelectorAll(".shot img").forEach(applyMotion);
    label();
  };
  label();
}

const nearby = new Map(); // what has been filled, or waits to be, by the section's id

/** Fill a section: of many persons, once it comes near the window. */
function whenNear(id, fill) {
  if (persons.length <= MANY_PERSONS || nearby.get(id) === "filled") {
    fill();
  } else if (!nearby.has(id)) {
    nearby.set(id, "waits");
    const observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      nearby.set(id, "filled");
      fill();
    }, { rootMargin: "400px" });
    observer.observe(byId(id));
  }
}

function fillLarge() {
  whenNear("similarity", fillHeatmap);
  whenNear("persons", fillPersons);
}

/* The live page: the same, and what changes is put in its place. */

/** Put one card in another's place; the reader's focus stays. */
function replaceCard(old, card) {
  const hadFocus = old.contains(document.activeElement);
  old.replaceWith(card);
  if (hadFocus) card.focus({ preventScroll: true });
}

function removeCard(card) {
  const next = card.nextElementSibling;
  const hadFocus = card.contains(document.activeElement);
  card.remove();
  if (hadFocus && next) next.focus({ preventScroll: true });
}

/** Change and remove the cards of a list as `current`, things by their ids, now says. */
function updateCards(list, name, current, makeCard) {
  for (const card of [...list.children]) {
    const thing = current.get(card.dataset[name]);
    if (!thing) removeCard(card);
    else if (signatures.get(card) !== signatureOf(thing)) replaceCard(card, makeCard(thing));
  }
}

/** New pairs go where they belong among those that are shown; the others wait below. */
function updateCandidates() {
  const list = byId("candidates");
  const single = data.candidates.filter((pair) => !groupOfPair(pair));
  const current = new Map(single.map((pair) => [pair.candidate_id, pair]));
  updateCards(list, "candidate", current, candidateCard);
  const order = new Map(single.map((pair, place) => [pair.candidate_id, place]));
  for (const pair of waitingCandidates()) {
    const place = order.get(pair.candidate_id);
    const next = [...list.children].find((card) => order.get(card.dataset.candidate) > place);
    if (next) next.before(candidateCard(pair));
    else if (list.children.length < PAIRS_AT_ONCE) list.append(candidateCard(pair));
    else break;
  }
  fillMore();
}

function updateGroups() {
  const list = byId("groups");
  const current = new Map(groups.map((group) => [group.group_id, group]));
  updateCards(list, "group", current, cardOfGroup);
  const shown = new Set([...list.children].map((card) => card.dataset.group));
  const fresh = groups.filter((group) => !shown.has(group.group_id));
  const listed = fresh.filter((group) => review.isListed(group.person_keys));
  list.append(...listed.map(cardOfGroup));
}

/** Show newer data; what did not change stays as it is. */
function update(newer) {
  const before = JSON.stringify(persons);
  const matrix = data.live.matrix;
  take(newer);
  const isOther = JSON.stringify(persons) !== before;
  fillFacts();
  fillLead();
  updateGroups();
  updateCandidates();
  if (isOther || matrix !== data.live.matrix) {
    fillVetoed();
    fillLarge();
  }
  wireMotion();
  review.update(keysOfAll(), vetoes());
}

const asking = { isUnderWay: false, isAgain: false };

/** Ask for the data of the page, once at a time. */
async function askAgain() {
  asking.isAgain = true;
  if (asking.isUnderWay) return;
  asking.isUnderWay = true;
  try {
    while (asking.isAgain) {
      asking.isAgain = false;
      const response = await fetch(
        `/api/gallery${location.search}&matrix=${data.live.matrix}`);
      if (!response.ok) break; // the next change is said again
      const newer = await response.json();
      if (await review.store.readAgain()) update(newer);
    }
  } catch {
    // The server is away. The browser connects again, and hears which version there is.
  } finally {
    asking.isUnderWay = false;
  }
}

async function goLive(started) {
  try {
    await started;
  } catch (error) {
    const text = `Decisions cannot be reached (${error.message}): load this page again.`;
    byId("notices").append(element("p", { className: "notice", role: "alert" }, text));
    return;
  }
  review.store.changes.addEventListener("gallery", (event) => {
    if (Number(event.data) !== data.live.version) askAgain();
  });
}

fillFacts();
fillGroups();
const started = fillCandidates();
fillVetoed();
fillSuspects();
fillLarge();
wireMotion();
if (started) started.then(() => startAudit(review.store.isSaved), () => {});
if (data.live) goLive(started);
