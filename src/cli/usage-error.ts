/** What was typed makes no sense: exit code 2. Found before anything was sent. */
export class UsageError extends Error {
  override readonly name: string = 'UsageError'
  readonly hint: string | undefined

  constructor(message: string, hint?: string) {
    super(message)
    this.hint = hint
  }
}

/** Thrown to end a command with another exit code than 1 after its message has been printed as usual. */
export class ExitError extends Error {
  override readonly name: string = 'ExitError'
  readonly exitCode: number
  readonly hint: string | undefined

  constructor(exitCode: number, message: string, hint?: string) {
    super(message)
    this.exitCode = exitCode
    this.hint = hint
  }
}
