import { startDelayProxy } from './delay-proxy.ts'

/** The delaying proxy in a process of its own, so that its work is not taken for the client's: `proxy-process.js HOST:PORT DELAY_MS`. */
const [target = '', delayMs = '0'] = process.argv.slice(2)
const proxy = await startDelayProxy(target, Number(delayMs))
console.log(`listening on ${proxy.address}`)
