"use strict";
/* How right the probabilities were by what was decided: asked of the server, where there is one. */

let auditsAsked = 0;

/** Show the audit once somebody opens it, and from then on with each decision. */
function startAudit(isServed) {
  const details = byId("audit");
  details.hidden = !isServed;
  if (!isServed) return;
  const show = () => (details.open ? showAudit(byId("audit-result")) : null);
  details.addEventListener("toggle", show);
  document.addEventListener("decided", show);
}

async function showAudit(place) {
  auditsAsked += 1;
  const mine = auditsAsked;
  let shown;
  try {
    const response = await fetch(`/api/audit${location.search}`);
    if (!response.ok) throw new Error(response.statusText);
    shown = auditShown(await response.json(), mine);
  } catch (error) {
    shown = [element("p", {}, `The audit cannot be reached: ${error.message}`)];
  }
  if (mine === auditsAsked) place.replaceChildren(...shown);
}

function auditShown(audit, number) {
  const left = element("p", { className: "hint" }, auditLeftOut(audit.left_out));
  if (!audit.pairs) {
    const text = "No pair with a probability was called the same or different so far.";
    return [element("p", {}, text), left];
  }
  const query = new URLSearchParams(location.search);
  query.set("number", number); // each time another address: the picture is asked for anew
  const picture = element("img", {
    src: `/api/audit.svg?${query}`,
    alt: "Reliability diagram: the share that was the same person over the probability",
  });
  const error = `${plural(audit.pairs, "pair", "pairs")}: the probabilities were off by `
    + `${audit.calibration_error.toFixed(2)} on average; were they exact, chance alone would give `
    + `${audit.error_by_chance.toFixed(2)}.`;
  return [element("p", {}, error), auditTable(audit.bins), picture, left];
}

function auditTable(bins) {
  const names = ["Probability", "Pairs decided", "Same person", "Off by"];
  const head = names.map((name) => element("th", { scope: "col" }, name));
  const rows = bins.map((bin) => {
    const range = `${bin.least.toFixed(2)} to ${bin.greatest.toFixed(2)}`;
    const cells = [bin.pairs, bin.same.toFixed(2), bin.error.toFixed(2)];
    return element("tr", {}, element("th", { scope: "row" }, range),
      ...cells.map((cell) => element("td", {}, String(cell))));
  });
  return element("table", { className: "audit" },
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function auditLeftOut({ unsure, undone, without_probability: without }) {
  return `Left out: ${plural(unsure, "pair", "pairs")} not sure, `
    + `${plural(without, "pair", "pairs")} without a probability, `
    + `${plural(undone, "decision", "decisions")} undone.`;
}
