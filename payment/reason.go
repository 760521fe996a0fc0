package payment

// A Reason is a code for what is wrong with a payment, spelled as the
// official TypeScript SDK 2.27 spells it. Other implementations spell some of
// them differently, so a program that reads reasons must not depend on one
// spelling; the ones with a meaning for other parties are SettlementPending
// (repeat the settle call) and DuplicateSettlement (do not).
type Reason string

const (
	// Any scheme.
	PaymentRequired       Reason = "Payment required"
	NoMatchingOffer       Reason = "No matching payment requirements"
	InvalidVersion        Reason = "invalid_x402_version"
	UnsupportedScheme     Reason = "unsupported_scheme"
	InvalidNetwork        Reason = "invalid_network"
	InvalidPayload        Reason = "invalid_payload"
	InvalidRequirements   Reason = "invalid_payment_requirements"
	SettlementPending     Reason = "settlement_pending"
	DuplicateSettlement   Reason = "duplicate_settlement"
	ExtensionEchoMismatch Reason = "extension_echo_mismatch"
	UnexpectedVerify      Reason = "unexpected_verify_error"
	UnexpectedSettle      Reason = "unexpected_settle_error"

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
	EVMUndeployedWallet  Reason = "invalid_exact_evm_payload_undeployed_smart_wallet"
	EVMSignatureFormat   Reason = "invalid_exact_evm_failed_to_parse_signature"
	EVMDeploymentFailed  Reason = "smart_wallet_deployment_failed"

	// exact on EVM by EIP-3009, as the chain stands.
	EVMTokenNameMismatch    Reason = "invalid_exact_evm_token_name_mismatch"
	EVMTokenVersionMismatch Reason = "invalid_exact_evm_token_version_mismatch"
	EVMNonceUsed            Reason = "invalid_exact_evm_nonce_already_used"
	EVMInsufficientBalance  Reason = "invalid_exact_evm_insufficient_balance"
	EVMSimulationFailed     Reason = "invalid_exact_evm_transaction_simulation_failed"

	// exact on EVM, settlement.
	EVMTransactionFailed Reason = "invalid_exact_evm_transaction_failed"

	// upto on EVM.
	UptoScheme                  Reason = "invalid_upto_evm_scheme"
	UptoNetworkMismatch         Reason = "invalid_upto_evm_network_mismatch"
	UptoFacilitatorMismatch     Reason = "upto_facilitator_mismatch"
	UptoExceedsAmount           Reason = "invalid_upto_evm_payload_settlement_exceeds_amount"
	UptoExceedsPermitted        Reason = "upto_amount_exceeds_permitted"
	UptoUnauthorizedFacilitator Reason = "upto_unauthorized_facilitator"
	UptoTransactionFailed       Reason = "invalid_upto_evm_transaction_failed"

	// exact and upto on EVM by Permit2, payload.
	Permit2Spender           Reason = "invalid_permit2_spender"
	Permit2RecipientMismatch Reason = "invalid_permit2_recipient_mismatch"
	Permit2Expired           Reason = "permit2_deadline_expired"
	Permit2NotYetValid       Reason = "permit2_not_yet_valid"
	Permit2AmountMismatch    Reason = "permit2_amount_mismatch"
	Permit2TokenMismatch     Reason = "permit2_token_mismatch"
	Permit2Signature         Reason = "invalid_permit2_signature"

	// exact and upto on EVM by Permit2, as the chain stands. Servers of
	// others answer the first with status 412: the payer may approve Permit2
	// and try again.
	Permit2AllowanceRequired   Reason = "permit2_allowance_required"
	Permit2InsufficientBalance Reason = "permit2_insufficient_balance"
	Permit2SimulationFailed    Reason = "permit2_simulation_failed"
	Permit2ProxyNotDeployed    Reason = "permit2_proxy_not_deployed"
	Permit2InvalidAmount       Reason = "permit2_invalid_amount"
	Permit2InvalidDestination  Reason = "permit2_invalid_destination"
	Permit2InvalidOwner        Reason = "permit2_invalid_owner"
	Permit2TooEarly            Reason = "permit2_payment_too_early"
	Permit2InvalidNonce        Reason = "permit2_invalid_nonce"
	Permit2ApprovalMismatch    Reason = "permit2_2612_amount_mismatch"

	// The extension eip2612GasSponsoring.
	EIP2612Format        Reason = "invalid_eip2612_extension_format"
	EIP2612FromMismatch  Reason = "eip2612_from_mismatch"
	EIP2612AssetMismatch Reason = "eip2612_asset_mismatch"
	EIP2612Spender       Reason = "eip2612_spender_not_permit2"
	EIP2612Expired       Reason = "eip2612_deadline_expired"

	// The extension erc20ApprovalGasSponsoring. The last two are of an approval
	// that was read and that no block will take, or no node has taken.
	ERC20ApprovalFormat        Reason = "invalid_erc20_approval_extension_format"
	ERC20ApprovalFromMismatch  Reason = "erc20_approval_from_mismatch"
	ERC20ApprovalAssetMismatch Reason = "erc20_approval_asset_mismatch"
	ERC20ApprovalSpender       Reason = "erc20_approval_spender_not_permit2"
	ERC20ApprovalTxParse       Reason = "erc20_approval_tx_parse_failed"
	ERC20ApprovalTxTarget      Reason = "erc20_approval_tx_wrong_target"
	ERC20ApprovalTxSelector    Reason = "erc20_approval_tx_wrong_selector"
	ERC20ApprovalTxCalldata    Reason = "erc20_approval_tx_invalid_calldata"
	ERC20ApprovalTxSpender     Reason = "erc20_approval_tx_wrong_spender"
	ERC20ApprovalTxSignature   Reason = "erc20_approval_tx_invalid_signature"
	ERC20ApprovalTxSigner      Reason = "erc20_approval_tx_signer_mismatch"
	ERC20ApprovalTxFailed      Reason = "erc20_approval_tx_failed"
	ERC20ApprovalBroadcast     Reason = "erc20_approval_broadcast_failed"
)
