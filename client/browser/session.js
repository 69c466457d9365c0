// Who is signed in, and the cookie that lets the feeds of this page in. The access token stays in this object: neither
// EventSource nor WebSocket can send it, so it is exchanged for a ticket, and the ticket for a cookie that no script can
// read, that goes to the watch of one namespace and to nothing else.

// What has less than this left is renewed before it is used.
const MARGIN_MS = 30000;

export class Session {
  static async signIn(email, password, namespace) {
    const session = new Session(namespace);
    session._keep(await post("/v1/auth:login", { email, password }));
    return session;
  }

  constructor(namespace) {
    this._parent = `namespaces/${namespace}`;
    this._cookieUntil = 0;
  }

  // Before each connection: it costs nothing while the cookie is good. Feeds that share a session share a renewal.
  async letIn() {
    if (Date.now() < this._cookieUntil - MARGIN_MS) return;
    this._renewing ??= this._renew().finally(() => (this._renewing = null));
    await this._renewing;
  }

  async _renew() {
    if (Date.now() > this._tokenUntil - MARGIN_MS) {
      this._keep(await post("/v1/auth:refresh", { refreshToken: this._refreshToken }));
    }
    const { ticket } = await post("/v1/namespaces:issueTicket", { parent: this._parent }, this._accessToken);
    const { expireTime } = await post("/v1/namespaces:redeemTicket", { ticket });
    this._cookieUntil = Date.parse(expireTime);
  }

  _keep({ accessToken, refreshToken, expiresIn }) {
    [this._accessToken, this._refreshToken] = [accessToken, refreshToken];
    this._tokenUntil = Date.now() + expiresIn * 1000;
  }
}

async function post(path, body, token) {
  const headers = { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok) throw new Error(`${answer.reason}: ${answer.detail}`);
  return answer;
}
