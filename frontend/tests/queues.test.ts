import { beforeAll, expect, it } from "vitest";
import { bytes } from "../src/lib/format";
import { translation } from "../src/lib/i18n.svelte";
import { type Broker, type Member, health } from "../src/dashboard/queues/broker";

beforeAll(() => translation.need(["dashboard"]));

const MEMBER: Member = {
  name: "rabbit@a",
  running: true,
  memory: 100e6,
  memory_limit: 1e9,
  memory_alarm: false,
  disk_free: 5e9,
  disk_limit: 50e6,
  disk_alarm: false,
  connections: 3,
  partitions: [],
};
const of = (member: Partial<Member>, problem = ""): string[] => {
  const broker: Broker = { version: "3", cluster: "a", problem, age: 1, page: null, members: [{ ...MEMBER, ...member }], queues: [], edges: [] };
  return health(broker).map((finding) => `${finding.bad ? "!" : ""}${finding.text}`);
};

it("says in plain words how the broker is", () => {
  expect(of({})).toEqual(["The broker is well: no alarms, all members run."]);
  expect(of({ memory: 1.2e9, memory_alarm: true })[0]).toMatch(/^!rabbit@a is out of memory \(1.2 GB of 1 GB\)/);
  expect(of({ memory: 0.9e9 })).toEqual(["!rabbit@a is short of memory: 900 MB of 1 GB."]);
  expect(of({ running: false, partitions: ["rabbit@b"] })).toHaveLength(2);
  expect(of({}, "refused")).toEqual(["!The broker's management API does not answer: refused"]);
});

it("writes amounts as people do", () => {
  expect([0, 950, 12_400, 3_200_000_000].map(bytes)).toEqual(["0 B", "950 B", "12.4 kB", "3.2 GB"]);
});
