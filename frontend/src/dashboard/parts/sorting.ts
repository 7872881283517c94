/** By which column a table is sorted. */
export interface Order {
  key: string;
  descending: boolean;
}

/** Sorted by a value; rows of the same value keep their order. Numbers in names count: n2 comes before n10. Pure. */
export function sorted<Row>(rows: readonly Row[], value: (row: Row) => string | number, descending: boolean): Row[] {
  const sign = descending ? -1 : 1;
  return [...rows].sort((a, b) => sign * compare(value(a), value(b)));
}

function compare(a: string | number, b: string | number): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

/** The order after a click on a column: the other way round, or by that column; numbers begin with the largest. */
export function turned(order: Order, key: string, number = false): Order {
  return order.key === key ? { key, descending: !order.descending } : { key, descending: number };
}
