import { bytes } from "../../lib/format";
import { t } from "../../lib/i18n.svelte";

/** What `/api/operate/queues` says. Amounts are bytes, ages seconds. */
export interface Queue {
  name: string;
  kind: "node" | "inbox" | "reply" | "watch" | "standby" | "dead" | "other";
  node: string | null;
  ready: number;
  unacked: number;
  consumers: number;
  published: number;
  delivered: number;
  bytes: number;
  oldest: number | null;
}

export interface Member {
  name: string;
  running: boolean;
  memory: number;
  memory_limit: number;
  memory_alarm: boolean;
  disk_free: number;
  disk_limit: number;
  disk_alarm: boolean;
  connections: number;
  partitions: string[];
}

export interface Broker {
  version: string;
  cluster: string;
  problem: string;
  age: number;
  /** RabbitMQ's own page. */
  page: string | null;
  members: Member[];
  queues: Queue[];
  edges: { source: string; destination: string; key: string }[];
}

export interface Finding {
  bad: boolean;
  text: string;
}

/** A share of the memory limit from which an alarm is near. */
const NEAR = 0.85;

/** The broker's health in plain words, the worst first; empty if nothing is known. */
export function health(broker: Broker): Finding[] {
  if (broker.problem) return [{ bad: true, text: t("queues.silent", { problem: broker.problem }) }];
  const findings = broker.members.flatMap(ofMember);
  if (findings.length === 0 && broker.members.length > 0) findings.push({ bad: false, text: t("queues.healthy") });
  return findings.sort((a, b) => Number(b.bad) - Number(a.bad));
}

function ofMember(member: Member): Finding[] {
  const found: Finding[] = [];
  const say = (condition: boolean, text: string): void => {
    if (condition) found.push({ bad: true, text });
  };
  const { name } = member;
  say(!member.running, t("queues.memberDown", { name }));
  say(member.memory_alarm, t("queues.memoryAlarm", { name, used: bytes(member.memory), limit: bytes(member.memory_limit) }));
  say(member.disk_alarm, t("queues.diskAlarm", { name, free: bytes(member.disk_free), limit: bytes(member.disk_limit) }));
  say(member.partitions.length > 0, t("queues.parted", { name, others: member.partitions.join(", ") }));
  const near = member.memory_limit > 0 && member.memory > NEAR * member.memory_limit;
  say(near && !member.memory_alarm, t("queues.memoryNear", { name, used: bytes(member.memory), limit: bytes(member.memory_limit) }));
  return found;
}
