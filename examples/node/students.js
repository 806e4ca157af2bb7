// Prints the students whose keys are on standard input, one per line.

import readline from "node:readline";
import { fileURLToPath } from "node:url";
import { Redis } from "ioredis";
import pg from "pg";
import { Reader } from "./reader.js";

const redis = new Redis(process.env.REDIS_URL, { commandTimeout: 100, maxRetriesPerRequest: 0, lazyConnect: true });
redis.on("error", () => {}); // reads go to the database meanwhile
await redis.connect().catch(() => {});
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });

const students = new Reader({
  service: process.env.SERVICE,
  entity: "student",
  redis,
  pool,
  scripts: process.env.SCRIPTS ?? fileURLToPath(new URL("../../cachesync/slots/lua", import.meta.url)),
  ttlMs: 3_600_000,
  absentTtlMs: 30_000,
  load: `
    SELECT e.fingerprint, r.version, r.payload
    FROM cachesync.entity AS e
    LEFT JOIN cachesync.read_rows(
      'SELECT key::text, version, payload FROM cachesync.student WHERE key = ANY ($1::bigint[])', ARRAY[$1]
    ) AS r ON true
    WHERE e.name = 'student'`,
});
await students.look();
setInterval(() => students.look().catch(() => {}), 10_000).unref();

for await (const key of readline.createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await students.get(key)));
}
redis.disconnect();
await pool.end();
