// A feed in a browser: survives restarts and networks, and proves that it missed nothing.
//
//   const feed = new Feed("demo", { transport: "sse", letIn: () => session.letIn(), onUnit: (unit) => ... });
//
// Over EventSource the browser reconnects by itself and sends the id of the last event that it got. But it gives up for
// good when it is answered anything but 200, for example 503 while a server restarts; then a new one is opened here, at
// the position that was reached. Over WebSocket that is done for every break. `letIn` is waited for before each.

// Ends after which the position is worth nothing: everything is read again.
const LOST = new Set(["COMPACTED", "EPOCH_CHANGED", "SNAPSHOT_EXPIRED"]);
const FINAL = new Set(["ACCESS_REVOKED", "NAMESPACE_DELETED", "COMPLETED"]);
// The server says something every 5 seconds: a longer silence is a broken connection.
const SILENCE_MS = 15000;
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS] = [100, 3000];

export class Feed {
  // `entities` holds what lives, by name; `revision` is the last one covered; `violations` must stay empty.
  constructor(namespace, { transport = "sse", letIn = async () => {}, onUnit = () => {}, onChange = () => {} } = {}) {
    this.entities = new Map();
    this.revision = null;
    this.epoch = "";
    this.connections = 0;
    this.violations = [];
    this.state = "connecting";
    this._url = new URL(`/v1/namespaces/${namespace}:watch`, location.href);
    this._open = transport === "websocket" ? this._openWebSocket : this._openEventSource;
    this._letIn = letIn;
    this._onUnit = onUnit;
    this._onChange = onChange;
    this._start = { snapshot: "true" };
    this._fresh = null;
    this._pause = FIRST_PAUSE_MS;
    this._connect();
  }

  close(state = "closed") {
    this.state = state;
    clearTimeout(this._timer);
    this._hangUp?.();
    this._onChange();
  }

  async _connect() {
    this._watchdog();
    try {
      await this._letIn();
    } catch (failure) {
      console.warn(failure);
      return this._again();
    }
    if (this.state !== "connecting" && this.state !== "live") return;
    this._url.search = new URLSearchParams(this._start);
    this._hangUp = this._open(this._url);
  }

  _openEventSource(url) {
    const source = new EventSource(url);
    source.onopen = () => this._opened();
    source.onmessage = (event) => this._take(JSON.parse(event.data));
    source.onerror = () => {
      this._broken();
      if (source.readyState === EventSource.CLOSED) this._again();
    };
    return () => source.close();
  }

  _openWebSocket(url) {
    const target = new URL(url);
    target.protocol = target.protocol.replace("http", "ws");
    const socket = new WebSocket(target);
    socket.onopen = () => this._opened();
    socket.onmessage = (event) => this._take(JSON.parse(event.data));
    socket.onclose = () => {
      this._broken();
      this._again();
    };
    return () => {
      socket.onclose = null;
      socket.close();
    };
  }

  _opened() {
    this.connections += 1;
    this.state = "live";
    this._onChange();
  }

  _broken() {
    if (this.state !== "live" && this.state !== "connecting") return;
    this.state = "connecting";
    this._onChange();
  }

  // One more connection, at the position that was reached, after a pause that grows.
  _again() {
    if (this.state !== "live" && this.state !== "connecting") return;
    this._hangUp?.();
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._connect(), this._pause * (0.5 + Math.random() / 2));
    this._pause = Math.min(this._pause * 2, LONGEST_PAUSE_MS);
  }

  _watchdog() {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._again(), SILENCE_MS);
  }

  _take(message) {
    this._watchdog();
    this._pause = FIRST_PAUSE_MS;
    const [after, revision] = [Number(message.afterRevision), Number(message.revision)];
    if (this.revision !== null && (after !== this.revision || message.epoch !== this.epoch)) {
      return this._violation(`(${after}, ${revision}] of ${message.epoch} follows ${this.epoch}.${this.revision}`);
    }
    if (message.end) return this._ended(message.end);
    if (message.units && !this._areInside(message.units.units, after, revision)) return;
    [this.epoch, this.revision] = [message.epoch, revision];
    if (message.snapshotPage) {
      this._fresh ??= new Map();
      for (const entity of message.snapshotPage.entities) this._fresh.set(entity.name, entity);
      this._start = { resume_token: message.snapshotPage.resumeToken };
      return;
    }
    if (message.snapshotDone) {
      this._fresh ??= new Map();
      if (this._fresh.size !== Number(message.snapshotDone.count)) {
        return this._violation(`the snapshot holds ${this._fresh.size} entities, not ${message.snapshotDone.count}`);
      }
      [this.entities, this._fresh] = [this._fresh, null];
    }
    this._start = { after_revision: String(revision), epoch: this.epoch };
    for (const unit of message.units?.units ?? []) this._apply(unit);
    this._onChange();
  }

  // Nothing was selected, so every revision of the range must be there.
  _areInside(units, after, revision) {
    const dense = units.length === revision - after && units.every((unit, i) => Number(unit.revision) === after + 1 + i);
    if (!dense) this._violation(`(${after}, ${revision}] holds ${units.map((unit) => unit.revision)}`);
    return dense;
  }

  _apply(unit) {
    for (const { kind, entity } of unit.changes) {
      if (!entity) continue; // of a type
      if (["DELETED", "EXPIRED", "PURGED"].includes(kind)) this.entities.delete(entity.name);
      else this.entities.set(entity.name, entity);
    }
    this._onUnit(unit);
  }

  _ended({ reason }) {
    if (FINAL.has(reason)) return this.close(reason);
    if (LOST.has(reason)) {
      [this._start, this._fresh, this.revision, this.epoch] = [{ snapshot: "true" }, null, null, ""];
    }
    // The browser would go on from the last event, and that is right for all other reasons, but at its own pace.
    this._broken();
    this._again();
  }

  _violation(text) {
    this.violations.push(text);
    this.close("VIOLATION");
  }
}
