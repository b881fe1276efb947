import { status as GrpcStatus } from '@grpc/grpc-js'
import type {
  sendUnaryData,
  ServerUnaryCall,
  ServerWritableStream,
  UntypedServiceImplementation,
} from '@grpc/grpc-js'
import type {
  HealthCheckRequest,
  HealthCheckResponse,
  HealthCheckResponseServingStatus,
} from '../gen/types.ts'

type WatchCall = ServerWritableStream<HealthCheckRequest, HealthCheckResponse>

/** The standard health service. The server as a whole (the empty name) and each of our services share one state. */
export class Health {
  readonly #services: ReadonlySet<string>
  readonly #watchers = new Set<() => void>()
  #status: HealthCheckResponseServingStatus = 'NOT_SERVING'

  constructor(services: Iterable<string>) {
    this.#services = new Set(['', ...services])
  }

  get serving(): boolean {
    return this.#status === 'SERVING'
  }

  setServing(serving: boolean): void {
    const status = serving ? 'SERVING' : 'NOT_SERVING'
    if (status === this.#status) return
    this.#status = status
    for (const tell of this.#watchers) tell()
  }

  /** Ends the watches: they would keep a stopping server alive. */
  close(): void {
    this.setServing(false)
    for (const end of this.#ends) end()
  }

  readonly #ends = new Set<() => void>()

  implementation(): UntypedServiceImplementation {
    return {
      Check: (
        call: ServerUnaryCall<HealthCheckRequest, HealthCheckResponse>,
        callback: sendUnaryData<HealthCheckResponse>,
      ) => {
        const { service } = call.request
        if (this.#services.has(service)) callback(null, { status: this.#status })
        else callback({ code: GrpcStatus.NOT_FOUND, details: `unknown service ${service}` })
      },
      Watch: (call: WatchCall) => this.#watch(call),
    }
  }

  #watch(call: WatchCall): void {
    const known = this.#services.has(call.request.service)
    const tell = (): void => {
      call.write({ status: known ? this.#status : 'SERVICE_UNKNOWN' })
    }
    const end = (): void => {
      this.#watchers.delete(tell)
      this.#ends.delete(end)
      call.end()
    }
    tell()
    this.#watchers.add(tell)
    this.#ends.add(end)
    call.on('cancelled', end)
  }
}
