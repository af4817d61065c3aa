// Seconds that come one after the other, put together. A series is `{ from, name: [numbers] ... }`: one number a second from the
// second `from` on. The first event has all that the agent keeps, those that follow only what is new.

export const MINUTES = 15;
const MOST = MINUTES * 60;
const SPARK = 60;

const arrays = (series) => Object.entries(series).filter(([, value]) => Array.isArray(value));
const length = (series) => Math.max(0, ...arrays(series).map(([, numbers]) => numbers.length));

// What is kept, with what is new behind it; at most so many seconds.
export function append(kept, news, most = MOST) {
  if (!kept || length(kept) === 0 || news.from < kept.from || news.from > kept.from + length(kept) + most) return news;
  const end = Math.max(kept.from + length(kept), news.from + length(news));
  const from = Math.max(kept.from, end - most);
  const merged = { from };
  for (const [name, numbers] of arrays(news)) {
    merged[name] = Array.from({ length: end - from }, (_, index) => {
      const second = from + index;
      const fresh = numbers[second - news.from];
      return second >= news.from && fresh !== undefined ? fresh : kept[name]?.[second - kept.from] ?? null;
    });
  }
  return merged;
}

// Everything that is known of one connection to the agent: another begins anew.
export class Memory {
  sparks = new Map();
  service = null;
  key = null;

  overview(event) {
    const sparks = new Map();
    for (const row of event.services) {
      const name = JSON.stringify([row.namespace, row.name, row.port]);
      row.spark = append(this.sparks.get(name), row.spark, SPARK);
      sparks.set(name, row.spark);
    }
    this.sparks = sparks;
    return event;
  }

  detail(event) {
    if (event === null) return null;
    const before = this.service;
    const find = (rows, same) => rows?.find(same)?.seconds;
    event.seconds = append(before?.seconds, event.seconds);
    for (const row of event.lanes) row.seconds = append(find(before?.lanes, (old) => old.tag === row.tag), row.seconds);
    for (const row of event.endpoints) {
      const kept = find(before?.endpoints, (old) => old.address === row.address);
      row.seconds = row.seconds === null ? kept ?? null : append(kept, row.seconds);
    }
    this.service = event;
    return event;
  }
}
