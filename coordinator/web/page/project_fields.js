// The fields of a project as people write them: what each is called, how it is entered, when it is the usual one.
//
// kind: text, secret, url, number, lines (headers), area, choice, flag, assertions.  `usual`: what the API makes of a
// field that is left out.  `empty`: what the form sends for an emptied field; null is the API's default.

export const GROUPS = [
  { key: "basic", title: "What is polled" },
  { key: "request", title: "Request" },
  { key: "judging", title: "What is expected" },
  { key: "connection", title: "Connection and TLS", folded: true },
  { key: "secrets", title: "Authorization", folded: true },
  { key: "patience", title: "Retries and states", folded: true },
];

const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

export const FIELDS = [
  { name: "url", group: "basic", title: "URL", kind: "url", required: true, hint: "http:// or https://", wide: true },
  { name: "name", group: "basic", title: "Name", kind: "text", usual: "", empty: "", hint: "as it is shown; else the URL is", most: 200, wide: true },
  { name: "interval", group: "basic", title: "Polled every", kind: "number", usual: 60, least: 1, required: true },
  { name: "unit", group: "basic", title: "Unit", kind: "choice", usual: "seconds", choices: [["seconds", "seconds"], ["minutes", "minutes"], ["hours", "hours"]] },
  { name: "enabled", group: "basic", title: "Enabled: poll it", kind: "flag", usual: true },

  { name: "method", group: "request", title: "Method", kind: "text", usual: "GET", empty: "GET", suggestions: METHODS, most: 32 },
  { name: "timeout_ms", group: "request", title: "Time-out", kind: "number", usual: 30_000, least: 1, greatest: 600_000, unit: "ms", empty: null },
  { name: "follow_redirects", group: "request", title: "Follow redirects", kind: "flag", usual: true },
  { name: "headers", group: "request", title: "Headers", kind: "lines", empty: null, hint: "one a line: Name: value", wide: true },
  { name: "body", group: "request", title: "Body", kind: "area", empty: null, wide: true },

  { name: "expected_status", group: "judging", title: "Expected status", kind: "text", usual: "200", empty: null, hint: "200, 2xx or 200-299,301" },
  { name: "assertions", group: "judging", title: "Assertions", kind: "assertions", empty: null, wide: true },

  { name: "verify_tls", group: "connection", title: "Verify certificates", kind: "flag", usual: true },
  { name: "ca_file", group: "connection", title: "CA file", kind: "text", empty: null, hint: "PEM, on the workers' host" },
  { name: "client_cert_file", group: "connection", title: "Client certificate file", kind: "text", empty: null, hint: "PEM, with its chain" },
  { name: "client_key_file", group: "connection", title: "Client key file", kind: "text", empty: null, hint: "PEM, when it is a file of its own" },
  { name: "server_name", group: "connection", title: "Server name (SNI)", kind: "text", empty: null, hint: "in place of the URL's host" },
  { name: "ip_version", group: "connection", title: "IP version", kind: "choice", empty: null, numeric: true, choices: [["", "any"], ["4", "4"], ["6", "6"]] },
  { name: "connection_reuse", group: "connection", title: "Connections", kind: "choice", usual: "auto", choices: [["auto", "kept open"], ["never", "a new one for each poll"]] },
  { name: "connect_timeout_ms", group: "connection", title: "Time-out for connecting", kind: "number", empty: null, least: 1, greatest: 600_000, unit: "ms" },
  { name: "body_limit_bytes", group: "connection", title: "Read of a body", kind: "number", empty: null, least: 1, greatest: 1_073_741_824, unit: "bytes" },
  { name: "proxy", group: "connection", title: "Proxy", kind: "text", empty: null, hint: "http://host:port" },
  { name: "user_agent", group: "connection", title: "User-Agent", kind: "text", empty: null },

  { name: "basic_auth", group: "secrets", title: "Basic", kind: "secret", empty: null, hint: "user:password, or a reference to a secret" },
  { name: "bearer_token", group: "secrets", title: "Bearer token", kind: "secret", empty: null, hint: "or a reference to a secret" },

  { name: "retries", group: "patience", title: "Retries", kind: "number", usual: 0, least: 0, greatest: 10, empty: null, hint: "before a failure counts" },
  { name: "retry_delay_ms", group: "patience", title: "Wait before a retry", kind: "number", usual: 1_000, least: 1, greatest: 60_000, unit: "ms", empty: null },
  { name: "down_after", group: "patience", title: "Down after", kind: "number", usual: 1, least: 1, greatest: 1_000, unit: "failures in a row", empty: null },
  { name: "up_after", group: "patience", title: "Up after", kind: "number", usual: 1, least: 1, greatest: 1_000, unit: "successes in a row", empty: null },
];

export function headerLines(headers) {
  return Object.entries(headers ?? {}).map(([name, value]) => `${name}: ${value}`).join("\n");
}

/** Throws an Error with what is wrong in words. */
export function headersOf(text) {
  const headers = {};
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue;
    const colon = line.indexOf(":");
    if (colon < 1) throw new Error(`line ${index + 1} is not a header: write Name: value`);
    const name = line.slice(0, colon).trim();
    if (Object.keys(headers).some((each) => each.toLowerCase() === name.toLowerCase())) throw new Error(`${name} is there twice`);
    headers[name] = line.slice(colon + 1).trim();
  }
  return Object.keys(headers).length > 0 ? headers : null;
}

export function shownValue(field, value) {
  if (field.kind === "lines") return headerLines(value);
  if (field.kind === "flag") return value ? "yes" : "no";
  if (field.kind === "choice") return field.choices.find(([each]) => each === String(value))?.[1] ?? String(value);
  return field.unit ? `${value} ${field.unit}` : String(value);
}
