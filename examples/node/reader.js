// Reads the rows of one entity through the cache of a service, by the rules of docs/other-languages.md.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";

const LEASE_MS = 2000, LEASE_WAIT_MS = 200, POLL_MS = 3;
const REGISTERED = "SELECT fingerprint, lost_at IS NOT NULL AS lost FROM cachesync.entity WHERE name = $1";

export class Reader {
  // `load` is the query for a row by the text of its key, $1: its version and payload, and the fingerprint.
  constructor({ service, entity, redis, pool, scripts, ttlMs, absentTtlMs, load }) {
    Object.assign(this, { service, entity, redis, pool, ttlMs, absentTtlMs, load });
    for (const name of ["lease", "fill", "change"]) {
      const lua = ["slot", name].map((part) => readFileSync(`${scripts}/${part}.lua`, "utf8")).join("\n");
      redis.defineCommand(name, { lua, numberOfKeys: 1 }); // EVALSHA, and EVAL if Redis does not know the script
    }
  }

  // Looks the entity up in the registry: at the start, and then every ten seconds.
  async look() {
    const { rows: [registered] } = await this.pool.query(REGISTERED, [this.entity]);
    Object.assign(this, registered);
  }

  // Returns a row, which is null if it does not exist, and how the read was answered.
  async get(key) {
    const name = `${this.service}:${this.entity}:${key}`, token = randomBytes(8).toString("hex");
    let leased = false;
    try {
      const end = Date.now() + LEASE_WAIT_MS;
      for (let slot = await this.redis.get(name); !this.lost && Date.now() < end; await setTimeout(POLL_MS)) {
        if (slot === "A") return { row: null, outcome: "HIT" };
        if (/^V\d{19}/.test(slot) && slot.slice(20, 28) === this.fingerprint && slot.length > 28)
          return { row: JSON.parse(slot.slice(28)), outcome: "HIT" };
        slot = await this.redis.lease(name, token, LEASE_MS, this.fingerprint, "read");
        if ((leased = slot === null)) break;
      }
    } catch {} // a cache that does not respond never fails a read
    const { rows: [{ version, payload, fingerprint }] } = await this.pool.query(this.load, [key]);
    if (leased) {
      const value = `V${String(version).padStart(19, "0")}${fingerprint}${payload}`;
      const [content, ttl] = payload === null ? ["A", this.absentTtlMs] : [value, this.ttlMs];
      await this.redis.fill(name, token, content, ttl).catch(() => {});
    }
    return { row: JSON.parse(payload), outcome: leased ? "MISS" : "BYPASS" };
  }

  // Brings a committed change of this service to its slot, given the row_version that the statement returned.
  async committed(key, version) {
    await this.redis.change(`${this.service}:${this.entity}:${key}`, String(version).padStart(19, "0"), "", 1, "");
  }
}
