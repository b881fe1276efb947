import { cpus } from 'node:os'
import { measureBasics, measureHandOver } from './basics.ts'
import { measureCodecs } from './codecs.ts'
import { measureDisk } from './disk.ts'
import { type Measurement, printTable } from './measure.ts'
import { measureRecords } from './records.ts'

/**
 * Repeats the numbers of the house style's hot path table. `npm run bench:micro`, or with names to choose: `records`, `basics`,
 * `handover`, `codecs`, `disk`. Compare lines of one run with each other, never with another machine's.
 */
const SUITES: Readonly<Record<string, () => Measurement[] | Promise<Measurement[]>>> = {
  records: measureRecords,
  basics: measureBasics,
  handover: measureHandOver,
  codecs: measureCodecs,
  disk: measureDisk,
}

const chosen = process.argv.slice(2)
const unknown = chosen.filter((name) => SUITES[name] === undefined)
if (unknown.length > 0) {
  console.error(`no such suite: ${unknown.join(', ')}; there are ${Object.keys(SUITES).join(', ')}`)
  process.exit(2)
}
const processors = cpus()
console.log(
  `node ${process.version}, ${process.platform} ${process.arch}, ` +
    `${processors.length} x ${processors[0]?.model.trim() ?? 'unknown processor'}`,
)
for (const [name, suite] of Object.entries(SUITES)) {
  if (chosen.length === 0 || chosen.includes(name)) printTable(await suite())
}
