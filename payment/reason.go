package payment

// A Reason is a code for what is wrong with a payment, spelled as the
// official TypeScript SDK 2.27 spells it. Other implementations spell some of
// them differently, so a program that reads reasons must not depend on one
// spelling; the ones with a meaning for other parties are SettlementPending
// (repeat the settle call) and DuplicateSettlement (do not).
type Reason string

const (
	// Any scheme.
	PaymentRequired     Reason = "Payment required"
	NoMatchingOffer     Reason = "No matching payment requirements"
	InvalidVersion      Reason = "invalid_x402_version"
	UnsupportedScheme   Reason = "unsupported_scheme"
	InvalidNetwork      Reason = "invalid_network"
	InvalidPayload      Reason = "invalid_payload"
	InvalidRequirements Reason = "invalid_payment_requirements"
	SettlementPending   Reason = "settlement_pending"
	DuplicateSettlement Reason = "duplicate_settlement"
	UnexpectedVerify    Reason = "unexpected_verify_error"
	UnexpectedSettle    Reason = "unexpected_settle_error"

	// exact on EVM, requirement and payload.
	EVMScheme            Reason = "invalid_exact_evm_scheme"
	EVMNetworkMismatch   Reason = "invalid_exact_evm_network_mismatch"
	EVMMissingDomain     Reason = "invalid_exact_evm_missing_eip712_domain"
	EVMRecipientMismatch Reason = "invalid_exact_evm_recipient_mismatch"
	EVMSignature         Reason = "invalid_exact_evm_signature"
	EVMValidBefore       Reason = "invalid_exact_evm_payload_authorization_valid_before"
	EVMValidAfter        Reason = "invalid_exact_evm_payload_authorization_valid_after"
	EVMValueMismatch     Reason = "invalid_exact_evm_payload_authorization_value_mismatch"
	EVMValueMismatchV1   Reason = "invalid_exact_evm_authorization_value"
	EVMAssetNotDeployed  Reason = "asset_not_deployed_contract"
	EVMPayloadType       Reason = "unsupported_payload_type"
	EVMFactoryNotAllowed Reason = "eip6492_factory_not_allowed"

	// exact on EVM by EIP-3009, as the chain stands.
	EVMTokenNameMismatch    Reason = "invalid_exact_evm_token_name_mismatch"
	EVMTokenVersionMismatch Reason = "invalid_exact_evm_token_version_mismatch"
	EVMNonceUsed            Reason = "invalid_exact_evm_nonce_already_used"
	EVMInsufficientBalance  Reason = "invalid_exact_evm_insufficient_balance"
	EVMSimulationFailed     Reason = "invalid_exact_evm_transaction_simulation_failed"

	// exact on EVM, settlement.
	EVMTransactionFailed Reason = "invalid_exact_evm_transaction_failed"
)
