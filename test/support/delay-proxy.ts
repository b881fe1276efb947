export { type DelayProxy, startDelayProxy } from '../../bench/delay-proxy.ts'
