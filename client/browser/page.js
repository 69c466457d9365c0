// Two feeds of one namespace, side by side. `?namespace=demo`, `?rows=20`.
import { Feed } from "./feed.js";
import { Session } from "./session.js";

const parameters = new URLSearchParams(location.search);
const namespace = parameters.get("namespace") ?? "demo";
const rows = Number(parameters.get("rows") ?? 20);
const names = { sse: "EventSource", websocket: "WebSocket" };

document.querySelector("#namespace").textContent = namespace;

function count(number, one, many) {
  return `${number} ${number === 1 ? one : many}`;
}

function show(transport, letIn) {
  const section = document.querySelector("main").appendChild(document.createElement("section"));
  const title = section.appendChild(document.createElement("h2"));
  title.append(`${names[transport]} `);
  const status = title.appendChild(document.createElement("small"));
  const table = section.appendChild(document.createElement("table"));
  const head = table.createTHead().insertRow();
  for (const text of ["Revision", "Entity", "Data"]) head.appendChild(document.createElement("th")).textContent = text;
  const body = table.createTBody();
  const revisions = [];
  let scheduled = false;

  function draw() {
    scheduled = false;
    status.className = feed.state === "live" ? "live" : feed.violations.length ? "broken" : "";
    const entities = count(feed.entities.size, "entity", "entities");
    const proof = feed.violations.at(0) ?? `${entities} at revision ${feed.revision ?? "-"}`;
    status.textContent = `${feed.state}: ${proof}, ${count(feed.connections, "connection", "connections")}`;
    const latest = [...feed.entities.values()].sort((a, b) => Number(b.revision) - Number(a.revision)).slice(0, rows);
    body.replaceChildren(
      ...latest.map((entity) => {
        const row = document.createElement("tr");
        row.insertCell().textContent = entity.revision;
        row.insertCell().textContent = entity.name.split("/").slice(3).filter((_, i) => i % 2 === 0).join("/");
        row.insertCell().textContent = JSON.stringify(entity.data);
        return row;
      }),
    );
  }

  function onChange() {
    if (!scheduled) setTimeout(draw, 50);
    scheduled = true;
  }

  const feed = new Feed(namespace, { transport, letIn, onChange, onUnit: (unit) => revisions.push(Number(unit.revision)) });
  return { feed, revisions };
}

document.querySelector("form").onsubmit = async (event) => {
  event.preventDefault();
  const [email, password] = ["#email", "#password"].map((id) => document.querySelector(id).value);
  try {
    const session = await Session.signIn(email, password, namespace);
    event.target.hidden = true;
    const shown = Object.keys(names).map((transport) => [transport, show(transport, () => session.letIn())]);
    // For the console, and for the test: what each feed has been through.
    Object.assign(window, { session, feeds: Object.fromEntries(shown) });
  } catch (failure) {
    document.querySelector("#refusal").textContent = failure.message;
  }
};
