// Empty: it lets child.go declare the runtime's functions without bodies.
