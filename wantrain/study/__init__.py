"""The study of the methods: small GPTs on real text, equal tokens, several seeds; what each method buys and costs."""
